"""Wait for what other processes do."""

import time
from collections.abc import Callable


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    """Fails if it does not happen in time."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)
