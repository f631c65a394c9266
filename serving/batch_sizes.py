"""Sizes of batches: which there are, and which one some waiting images make."""

from collections.abc import Sequence

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes. Each is at most half larger than the one before (after 2), so that padding wastes little."""


def sizes_up_to(largest: int) -> tuple[int, ...]:
    """The batch sizes up to `largest`, which is one of them."""
    return (*(step for step in STEPS if step < largest), largest)


def fit(waiting: int, sizes: Sequence[int], padding: float) -> tuple[int, int]:
    """How many of the waiting items to run now, and the size to pad their batch to.

    Padding computes for nothing; running fewer items makes the rest wait. So the batch is padded up if at most that
    share of it is padding, or if a second batch for the rest would cost as much.
    """
    above, below = smallest(waiting, sizes), max((size for size in sizes if size <= waiting), default=None)
    if below is None:
        assert above is not None
        return waiting, above
    if above is None:
        return below, below
    rest = smallest(waiting - below, sizes)
    if waiting >= (1 - padding) * above or (rest is not None and below + rest >= above):
        return waiting, above
    return below, below


def smallest(waiting: int, sizes: Sequence[int]) -> int | None:
    """The smallest size that holds `waiting` items; None if none does."""
    return min((size for size in sizes if size >= waiting), default=None)
