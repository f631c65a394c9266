"""Processes that decode images into the cache, or change them for training.

They begin without this program's main module, so those that decode load neither torch nor timm, and they end with the
process that started them, however that ends.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor

from mosa_deploy.errors import TrainingError
from mosa_deploy.utils.processes import begin, without_interrupts
from training.cache import CachedSet
from training.inspection import Inspection, inspect
from training.tasks.base import Example

CHUNK = 8
"""Images of one job."""

Job = tuple[int, Example]
"""A row of a cached set, and the image that belongs there."""


Result = TypeVar("Result")


class Workers:
    """Up to `count` worker processes. They start with the first job, and end with the `with` block."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=kind is not None)

    def decode(self, cached: CachedSet, how: Inspection, jobs: Sequence[Job], again: bool = False) -> "Future[None]":
        """Decode images into their rows; with `again` also those that look as if they were there."""
        return self.submit(partial(decode, cached, how, jobs, again))

    def submit(self, job: Callable[[], Result]) -> "Future[Result]":
        """Hand a job to the next free process."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.count, initializer=begin, initargs=(os.getpid(),))
        with without_interrupts(), _deaths_told():
            future: Future[Result] = self._pool.submit(job)
        return future


def finish(future: "Future[Result]") -> Result:
    """Wait for a job, and return what it returns.

    Raises:
        TrainingError: a worker died, or has too little memory.
        MosaError: the cache cannot be written.
    """
    with _deaths_told():
        return future.result()


@contextmanager
def _deaths_told() -> Iterator[None]:
    try:
        yield
    except (BrokenProcessPool, MemoryError) as error:
        what = "has too little memory" if isinstance(error, MemoryError) else "died, perhaps for want of memory"
        raise TrainingError(
            f"a process that prepares images {what}: give fewer --workers, and go on with --resume if an epoch is"
            " finished"
        ) from None


def decode(cached: CachedSet, how: Inspection, jobs: Sequence[Job], again: bool) -> None:
    """What a worker does."""
    with cached.writer() as writer:
        for row, example in jobs:
            if again or not writer.is_readable(row):
                writer.write(row, *inspect(example, how))
