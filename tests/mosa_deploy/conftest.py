"""Fixtures of this room: seeded tests, a small bundle."""

import pytest
import torch

from mosa_deploy.bundles.bundle import Bundle
from tests.support.runs import small_bundle


@pytest.fixture(autouse=True)
def seeded() -> None:
    """No test depends on which ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def bundle() -> Bundle:
    """See `small_bundle`."""
    return small_bundle()
