"""A set of images that is decoded while it is used: by worker processes, into a cache on disk.

Memory holds what is known of the images, and of their pixels a batch or two. An image that cannot be read is left out
of its batch, in every epoch alike, so that the result depends neither on the number of workers nor on what the cache
held before.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.errors import DataError
from training.cache import EMPTY, READABLE, CachedSet, checksum, finding
from training.data import Batch, Cut, ImageSet, label_tensor
from training.inspection import Finding, Inspection
from training.tasks.base import Example
from training.workers import CHUNK, Workers, finish

BLOCK = 256
"""Images between two steps of the progress bar."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class CachedImages:
    """The images of a set that can be read; their pixels stay on disk."""

    pixels: Pixels
    """(N, H, W, 3) of all images of the set."""
    rows: Rows
    """Those that can be read."""
    labels: Tensor
    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Sequence[int] | Tensor) -> Tensor:
        """See `ImageSet.take`."""
        return torch.from_numpy(self.pixels[self.rows[np.asarray(index)]])

    def split(self, size: int) -> Iterator[Tensor]:
        """See `ImageSet.split`."""
        return (self.take(index) for index in torch.arange(len(self)).split(size))

    def batches(self, cuts: Sequence[Cut]) -> Iterator[Batch]:
        """See `ImageSource.batches`."""
        return (Batch(self.take(cut.rows), self.labels[cut.rows], cut) for cut in cuts)

    def settled(self) -> ImageSet:
        """See `ImageSource.settled`."""
        return self


class StreamedImages:
    """A set of images that is decoded when it is needed.

    `what` names it in messages. `conclude` is called when all images are asked for, and may refuse them. `classes` is
    how many labels there are, if an image may have several.
    """

    def __init__(
        self,
        cached: CachedSet,
        examples: Sequence[Example],
        how: Inspection,
        workers: Workers,
        what: str,
        conclude: Callable[[], object] = lambda: None,
        classes: int = 0,
    ) -> None:
        self.cached, self.examples, self.how, self.workers, self.what = cached, examples, how, workers, what
        self.conclude = conclude
        self.labels = label_tensor(examples, classes)
        self.pixels, self.records = cached.pixels(), cached.records()
        self._jobs: dict[int, Future[None]] = {}
        self._known = np.zeros(len(examples), bool)
        """Which images this process has found to be whole, or unreadable."""

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, cuts: Sequence[Cut]) -> Iterator[Batch]:
        """See `ImageSource.batches`. The workers go ahead in this order, and one batch is read ahead.

        A batch whose images all cannot be read is empty.
        """
        self.ahead(np.concatenate([cut.rows.numpy() for cut in cuts]))
        reader = ThreadPoolExecutor(1)
        pending: deque[Future[Batch]] = deque()
        try:
            for cut in cuts:
                pending.append(reader.submit(self._batch, cut))
                if len(pending) > 1:
                    yield pending.popleft().result()
            yield from (batch.result() for batch in pending)
        finally:
            reader.shutdown(wait=False, cancel_futures=True)

    def settled(self) -> ImageSet:
        """See `ImageSource.settled`.

        Raises:
            DataError: what `conclude` finds.
        """
        self.conclude()
        return self.readable

    @cached_property
    def readable(self) -> CachedImages:
        """The images that can be read, after all have been decoded."""
        every = np.arange(len(self))
        self.ahead(every)
        with tqdm(total=len(self), desc=f"decoding {self.what}", unit=" images", leave=False, disable=None) as bar:
            for start in range(0, len(self), BLOCK):
                self._decoded(every[start : start + BLOCK])
                bar.update(min(BLOCK, len(self) - start))
        kept = np.flatnonzero(self.records["state"] == READABLE)
        return CachedImages(self.pixels, kept, self.labels[kept], [self.examples[row] for row in kept.tolist()])

    def findings(self) -> Iterator[tuple[Example, Finding]]:
        """What is known of each image, after all have been decoded."""
        assert self.readable is not None
        for example, record in zip(self.examples, self.records, strict=True):
            yield example, finding(record, example.name)

    def ahead(self, order: Rows) -> None:
        """Let the workers decode what is not there, in this order, and try again what could not be read."""
        there = self._known | (self.records["state"] == READABLE)
        self._submit([row for row in dict.fromkeys(order.tolist()) if not there[row] and row not in self._jobs])

    def _submit(self, rows: Sequence[int], again: bool = False) -> None:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            jobs = [(row, self.examples[row]) for row in chunk]
            self._jobs.update(dict.fromkeys(chunk, self.workers.decode(self.cached, self.how, jobs, again)))

    def _batch(self, cut: Cut) -> Batch:
        rows = cut.rows.numpy()
        self._decoded(rows)
        readable = torch.from_numpy(self.records["state"][rows] == READABLE)
        kept = Cut(cut.rows[readable], cut.places[readable], cut.total)
        return Batch(torch.from_numpy(self.pixels[kept.rows.numpy()]), self.labels[kept.rows], kept)

    def _decoded(self, rows: Rows) -> None:
        """Wait until these images are there, and decode those again that are damaged.

        Raises:
            MosaError: a worker died, or the cache cannot be written.
            DataError: what was written is damaged at once.
        """
        unknown = [row for row in rows.tolist() if not self._known[row]]
        damaged = [row for row in unknown if not self._is_whole(row)]
        self._submit(damaged, again=True)
        for row in damaged:
            if not self._is_whole(row):
                raise DataError(f"{self.cached.folder} does not keep what is written: name another folder with --cache")
        self._known[unknown] = True

    def _is_whole(self, row: int) -> bool:
        job = self._jobs.pop(row, None)
        if job is not None:
            finish(job)
        record = self.records[row]
        pixels = self.pixels[row] if record["state"] == READABLE else None
        return bool(record["state"] != EMPTY) and checksum(record, pixels) == int(record["check"])
