"""Processes that decode the images of `mosa score`: in order, and never far ahead of the graph."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from mosa_deploy.bundles.decode import allow_pixels
from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.errors import MosaError
from mosa_deploy.utils.files import read_content
from mosa_deploy.utils.processes import begin, without_interrupts
from serving.images import read_pixels

ATTEMPTS = 3
"""How often an image may end the process that decodes it before its shard is given up in this run."""
NICE = 5
"""How much less urgent decoding is than the graph. The threads of a graph wait for each other in every product, so a
process that takes a core from one of them delays all; between products cores are free."""
AHEAD = 2
"""Chunks of images per process that are decoded, or wait to be, before the graph takes them."""
CHUNK_BYTES = 16 << 20
"""The most bytes of encoded images in a chunk, unless a single one has more."""


class Encoded(NamedTuple):
    """An image that is not decoded yet: its name in the answers, and its bytes or its path."""

    name: str
    content: bytes | Path


Fault = tuple[str, str]
"""An image, and why it has no answer."""


class LostError(MosaError):
    """A shard on which processes died. Nothing is known to be wrong with it, so the next run tries it again."""


class Chunk(NamedTuple):
    """Some images of a shard, one after the other, decoded."""

    names: list[str]
    """Those of the images that can be read."""
    pixels: list[Pixels]
    """The same images as each preprocess reads them (n, H, W, 3); empty if there are none."""
    faults: list[Fault]
    """The other images."""

    @classmethod
    def joined(cls, chunks: Sequence["Chunk"]) -> Self:
        """The images of several chunks."""
        return cls(
            [name for chunk in chunks for name in chunk.names],
            [np.concatenate(each) for each in zip(*(chunk.pixels for chunk in chunks if chunk.pixels), strict=True)],
            [fault for chunk in chunks for fault in chunk.faults],
        )


@dataclass(frozen=True)
class Reading:
    """How images are read."""

    preprocesses: tuple[Preprocess, ...]
    max_pixels: int


class Job(NamedTuple):
    """Images on their way through a pool."""

    images: list[Encoded]
    pool: Executor
    future: "Future[Chunk]"


class Decoders:
    """Up to `count` processes, or a thread of this one if that is 0. They end with the `with` block.

    Where a process dies, the chunks that were on their way are decoded again, an image at a time. So it shows which
    image ends the process that decodes it.
    """

    def __init__(self, count: int, reading: Reading, size: int) -> None:
        """`size` is the most images of a chunk."""
        self.count, self.reading, self.size = count, reading, size
        self._pool = self._new_pool()

    def _new_pool(self) -> Executor:
        if not self.count:
            return ThreadPoolExecutor(1, initializer=allow_pixels, initargs=(self.reading.max_pixels,))
        # Such processes begin without this one's memory and threads.
        fresh, given = get_context("spawn"), (os.getpid(), self.reading.max_pixels)
        return ProcessPoolExecutor(self.count, fresh, initializer=_begin, initargs=given)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def decoded(self, images: Iterable[Encoded]) -> Iterator[Chunk]:
        """Decode images; they come in their order.

        Raises:
            LostError: an image has ended its process `ATTEMPTS` times.
        """
        waiting: deque[Job] = deque()
        for part in chunks(images, self.size):
            waiting.append(self._submit(part))
            if len(waiting) > AHEAD * max(1, self.count):
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def _submit(self, images: list[Encoded]) -> Job:
        try:
            with without_interrupts():
                return Job(images, self._pool, self._pool.submit(decode, images, self.reading))
        except BrokenExecutor as error:
            lost: Future[Chunk] = Future()
            lost.set_exception(error)
            return Job(images, self._pool, lost)

    def _result(self, job: Job) -> Chunk:
        try:
            return job.future.result()
        except BrokenExecutor:
            self._replace(job.pool)
            return Chunk.joined([self._alone(image) for image in job.images])

    def _alone(self, image: Encoded) -> Chunk:
        """Decode an image while nothing else is decoded that was on its way when a process died."""
        for _ in range(ATTEMPTS):
            job = self._submit([image])
            try:
                return job.future.result()
            except BrokenExecutor:
                self._replace(job.pool)
        raise LostError(
            f"the process that decodes {image.name} has died {ATTEMPTS} times, perhaps for want of memory: take this"
            " image out, or give fewer --workers or a smaller MOSA_MAX_PIXELS, and the same command tries it again"
        )

    def _replace(self, broken: Executor) -> None:
        """Take new processes in place of those of a broken pool, unless that was done before."""
        if self._pool is broken:
            broken.shutdown(wait=True, cancel_futures=True)
            self._pool = self._new_pool()


def chunks(images: Iterable[Encoded], size: int) -> Iterator[list[Encoded]]:
    """Images in lists of `size`, or fewer if they are large."""
    part: list[Encoded] = []
    held = 0
    for image in images:
        length = len(image.content) if isinstance(image.content, bytes) else 0
        if part and (len(part) == size or held + length > CHUNK_BYTES):
            yield part
            part, held = [], 0
        part.append(image)
        held += length
    if part:
        yield part


def decode(images: Sequence[Encoded], reading: Reading) -> Chunk:
    """What a process does."""
    names, read, faults = list[str](), list[list[Pixels]](), list[Fault]()
    for name, content in images:
        try:
            read.append(read_pixels(read_content(content), reading.preprocesses, reading.max_pixels))
            names.append(name)
        except MosaError as error:
            faults.append((name, str(error)))
    return Chunk(names, [np.stack(each) for each in zip(*read, strict=True)], faults)


def _begin(parent: int, max_pixels: int) -> None:
    begin(parent)
    os.nice(NICE)
    allow_pixels(max_pixels)
