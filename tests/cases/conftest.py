"""What the cases of the service share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.support.app import changing


@pytest.fixture
def admin(copied: Path) -> Iterator[TestClient]:
    """The service on a store of one's own, by one who may change it; tasks are loaded when they are asked for."""
    with changing(copied, prefetch=0) as client:
        yield client
