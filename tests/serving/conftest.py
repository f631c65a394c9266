"""What the service is asked, what it should answer, and the GPU that it may find."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from tests.support.app import Classify, Reference
from tests.support.host_gpu import HostGpu
from tests.support.tasks import TaskMaker


@pytest.fixture(scope="session")
def offline(maker: TaskMaker, archives: Mapping[str, Archive]) -> Mapping[str, np.typing.NDArray[np.float32]]:
    """The reference: each task's probabilities (n, K) of the maker's images, by its folded graph alone."""
    return {name: maker.offline(archive) for name, archive in archives.items()}


@pytest.fixture(scope="session")
def reference(
    maker: TaskMaker, archives: Mapping[str, Archive], offline: Mapping[str, np.typing.NDArray[np.float32]]
) -> Reference:
    """Checks what tasks answer."""
    return Reference(maker, archives, offline)


@pytest.fixture
def shared(copied: Path) -> Path:
    """The shared graph of the store."""
    (folder,) = (copied / "backbones").iterdir()
    return folder / "shared.onnx"


@pytest.fixture
def ask(client: TestClient) -> Classify:
    """Classify a file and return the response."""

    def classify(content: bytes, task: str, **form: str) -> Any:
        return client.post("/classify", files={"image": ("some.png", content)}, data={"task": task, **form})

    return classify


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> HostGpu:
    """A GPU of numpy with its TensorRT."""
    made = HostGpu()
    made.install(monkeypatch)
    return made
