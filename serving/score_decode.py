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

from mosa_deploy.bundles.decode import allow_pixels
from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.errors import ConfigError, MosaError
from mosa_deploy.utils.files import read_content
from mosa_deploy.utils.processes import begin, without_interrupts
from serving.images import read_pixels

AHEAD = 2
"""Chunks of images per process that are decoded, or wait to be, before the graph takes them."""
CHUNK_BYTES = 16 << 20
"""The most bytes of encoded images in a chunk, unless a single one has more."""


class Encoded(NamedTuple):
    """An image that is not decoded yet: its name in the answers, and its bytes or its path."""

    name: str
    content: bytes | Path


Decoded = list[Pixels] | str
"""An image as each preprocess reads it, or why it cannot be read."""


class Chunk(NamedTuple):
    """Some images of a shard, one after the other."""

    names: list[str]
    images: list[Decoded]


@dataclass(frozen=True)
class Reading:
    """How images are read."""

    preprocesses: tuple[Preprocess, ...]
    max_pixels: int


class Decoders:
    """Up to `count` processes, or a thread of this one if that is 0. They end with the `with` block."""

    def __init__(self, count: int, reading: Reading, size: int) -> None:
        """`size` is the most images of a chunk."""
        self.count, self.reading, self.size = count, reading, size
        self._pool: Executor
        if count:
            # Such processes begin without this one's memory and threads.
            fresh, given = get_context("spawn"), (os.getpid(), reading.max_pixels)
            self._pool = ProcessPoolExecutor(count, fresh, initializer=_begin, initargs=given)
        else:
            self._pool = ThreadPoolExecutor(1, initializer=allow_pixels, initargs=(reading.max_pixels,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def decoded(self, images: Iterable[Encoded]) -> Iterator[Chunk]:
        """Decode images; they come in their order.

        Raises:
            ConfigError: a process died.
        """
        waiting: deque[tuple[list[str], Future[list[Decoded]]]] = deque()
        try:
            for part in chunks(images, self.size):
                contents = [image.content for image in part]
                with without_interrupts():
                    job = self._pool.submit(decode, contents, self.reading)
                waiting.append(([image.name for image in part], job))
                if len(waiting) > AHEAD * max(1, self.count):
                    names, first = waiting.popleft()
                    yield Chunk(names, first.result())
            while waiting:
                names, first = waiting.popleft()
                yield Chunk(names, first.result())
        except BrokenExecutor:
            raise ConfigError(
                "a process that decodes images died, perhaps for want of memory: give fewer --workers, or a smaller"
                " MOSA_MAX_PIXELS, and the same command goes on"
            ) from None


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


def decode(contents: Sequence[bytes | Path], reading: Reading) -> list[Decoded]:
    """What a process does."""
    return [_decoded(content, reading) for content in contents]


def _decoded(content: bytes | Path, reading: Reading) -> Decoded:
    try:
        return read_pixels(read_content(content), reading.preprocesses, reading.max_pixels)
    except MosaError as error:
        return str(error)


def _begin(parent: int, max_pixels: int) -> None:
    begin(parent)
    allow_pixels(max_pixels)
