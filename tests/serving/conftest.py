"""A client of the service, and pictures to ask it about."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from mosa_deploy.store import Store
from serving.registry import Registry
from serving.service import app

Ask = Callable[..., Any]


def picture(seed: int = 0, mode: str = "RGB", kind: str = "png") -> bytes:
    """A picture of 48 x 40 with coarse structure, as a file."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC).convert(mode).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def registry(store: Path) -> Registry:
    """Both tasks."""
    return Registry.open(Store(store), threads=1)


@pytest.fixture
def client(registry: Registry) -> TestClient:
    """The service with both tasks."""
    app.state.registry = registry
    return TestClient(app)


@pytest.fixture
def ask(client: TestClient) -> Ask:
    """Classify a file and return the response."""

    def classify(content: bytes, task: str, **form: str) -> Any:
        return client.post("/classify", files={"image": ("some.png", content)}, data={"task": task, **form})

    return classify


def scores(response: Any) -> dict[str, float]:
    """Label -> score of a response, in the order of the answer."""
    assert response.status_code == 200, response.text
    return {entry["label"]: entry["score"] for entry in response.json()["predictions"]}
