"""What several cases share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from tests.support.app import changing
from tests.support.checkpoints import State
from tests.support.peft_models import CLASSES, NAME


@pytest.fixture
def admin(copied: Path) -> Iterator[TestClient]:
    """The service on a store of one's own, by one who may change it; tasks are loaded when they are asked for."""
    with changing(copied, prefetch=0) as client:
        yield client


@pytest.fixture(scope="module")
def state() -> State:
    """A tuned ViT of timm by its own names, with its head; no test changes it."""
    model = load_backbone(NAME, Weights("random"), CLASSES)
    randomise(model, seed=5)
    return dict(model.state_dict())
