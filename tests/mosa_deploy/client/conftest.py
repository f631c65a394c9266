"""Services whose replies a test chooses."""

from collections.abc import Iterator

import pytest

from tests.support.fake_service import StartService, fake_services


@pytest.fixture
def start_service() -> Iterator[StartService]:
    """See `fake_services`."""
    with fake_services() as start:
        yield start
