"""What every route with images does: it leases versions, decodes in threads, and has the inference side answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from serving import tracing
from serving.assignment import SentImage
from serving.backend import Answered, Backend, Embedded, Lease
from serving.errors import RequestError, late
from serving.images import read_pixels
from serving.settings import Settings

Good = TypeVar("Good", Answered, Embedded)

Ask = Callable[[Sequence[tuple[Lease, Pixels]], float], Awaitable[Sequence[Good | RequestError]]]
"""Asks the inference side about images, each by a lease, within so many seconds."""


@dataclass
class RequestStats:
    """What the log line says of a request."""

    lanes: set[str] = field(default_factory=set)
    batch: int = 0
    """The largest batch that one of its images was in."""
    parts: dict[str, float] = field(default_factory=dict)
    """Milliseconds by part of the work."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the work."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.parts[name] = round(1000 * (time.monotonic() - start), 2)

    def add(self, lease: Lease, answered: Answered | Embedded) -> None:
        """Add an image; of waits and runs the longest is kept."""
        self.lanes.add(lease.lane)
        self.batch = max(self.batch, answered.batch)
        for name, seconds in (("queue", answered.waited), ("run", answered.ran)):
            self.parts[name] = max(self.parts.get(name, 0.0), round(1000 * seconds, 2))


@dataclass(frozen=True)
class Read:
    """An image that a thread decodes."""

    name: str
    preprocesses: Sequence[Preprocess]
    future: "asyncio.Future[list[Pixels]] | None"
    """None if there is nothing to decode it for."""

    def result(self, deadline_s: float) -> dict[Preprocess, Pixels] | RequestError:
        """The pixels by preprocess, or what went wrong; an image that is not there by now is late."""
        if self.future is None:
            return {}
        if self.future.cancelled():
            return late(deadline_s)
        try:
            return dict(zip(self.preprocesses, self.future.result(), strict=True))
        except RequestError as error:
            return RequestError(error.status, f"{self.name}: {error.reason}")


@dataclass(frozen=True)
class Handled(Generic[Good]):
    """What became of one image by one task."""

    task: str
    lease: Lease | RequestError
    found: Good | RequestError

    @property
    def labels(self) -> tuple[str, str, str]:
        """Task, lane and status, for the metrics; what is not known is empty."""
        status = str(self.found.status if isinstance(self.found, RequestError) else 200)
        return (self.task, self.lease.lane, status) if isinstance(self.lease, Lease) else ("", "", status)


class ImageHandler:
    """Has the images of a request answered, each by its tasks, all within one deadline."""

    def __init__(self, backend: Backend, settings: Settings, decoders: ThreadPoolExecutor) -> None:
        self.backend, self.settings, self.decoders = backend, settings, decoders

    async def outcomes(
        self,
        sent: Sequence[SentImage],
        stats: RequestStats,
        ask: Ask[Good],
        plain: bool = False,
        refuse: Callable[[Lease], RequestError | None] = lambda lease: None,
    ) -> list[Handled[Good]]:
        """One outcome per image and task, in their order. With `plain` the names of tasks are those of backbones.

        `refuse` says why a version cannot do what is asked.
        """
        end = time.monotonic() + self.settings.deadline_s
        pairs: list[tuple[int, str]] = [(i, task) for i, image in enumerate(sent) for task in image.tasks]
        names = [*dict.fromkeys(task for _, task in pairs)]
        with stats.part("load"), tracing.loading(names):
            leases = await self.backend.lease(names, end - time.monotonic(), plain)
        held = [lease for lease in leases.values() if isinstance(lease, Lease)]
        leases = {name: (refuse(each) if isinstance(each, Lease) else None) or each for name, each in leases.items()}
        try:
            with stats.part("decode"):
                pixels = await self._decode(sent, leases, end)
            with stats.part("infer"):
                found = await self._infer(pairs, leases, pixels, end, ask)
        finally:
            if held:
                await self.backend.release(held)
        for (_, task), each in zip(pairs, found, strict=True):
            lease = leases[task]
            if isinstance(lease, Lease) and not isinstance(each, RequestError):
                stats.add(lease, each)
        return [Handled(task, leases[task], each) for (_, task), each in zip(pairs, found, strict=True)]

    async def _decode(
        self, sent: Sequence[SentImage], leases: Mapping[str, Lease | RequestError], end: float
    ) -> list[dict[Preprocess, Pixels] | RequestError]:
        """For each image, its pixels (H, W, 3) by the preprocesses of its tasks."""
        reads = [self._read(image, leases) for image in sent]
        futures = [read.future for read in reads if read.future]
        try:
            if futures:
                await asyncio.wait(futures, timeout=max(0.0, end - time.monotonic()))
        finally:
            for future in futures:
                future.cancel()
        return [read.result(self.settings.deadline_s) for read in reads]

    def _read(self, image: SentImage, leases: Mapping[str, Lease | RequestError]) -> Read:
        """Let a thread decode an image, unless no task is there to answer it."""
        found = [lease for lease in map(leases.__getitem__, image.tasks) if isinstance(lease, Lease)]
        preprocesses = list(dict.fromkeys(lease.preprocess for lease in found))
        if not preprocesses:
            return Read(image.name, [], None)
        work: Callable[[], list[Pixels]] = partial(read_pixels, image.content, preprocesses, self.settings.max_pixels)
        if tracing.spans:
            work = tracing.spans.decoding(work, len(image.content))
        return Read(image.name, preprocesses, asyncio.get_running_loop().run_in_executor(self.decoders, work))

    async def _infer(
        self,
        pairs: Sequence[tuple[int, str]],
        leases: Mapping[str, Lease | RequestError],
        pixels: Sequence[dict[Preprocess, Pixels] | RequestError],
        end: float,
        ask: Ask[Good],
    ) -> list[Good | RequestError]:
        """One outcome per pair of an image and a task."""
        outcomes: list[Good | RequestError | None] = []
        asked: list[tuple[Lease, Pixels]] = []
        for i, task in pairs:
            lease, image = leases[task], pixels[i]
            if isinstance(lease, RequestError) or isinstance(image, RequestError):
                outcomes.append(lease if isinstance(lease, RequestError) else _failed(image))
            else:
                outcomes.append(None)
                asked.append((lease, image[lease.preprocess]))
        answered: Iterator[Good | RequestError] = iter(())
        if asked:
            try:
                answered = iter(await ask(asked, end - time.monotonic()))
            except RequestError as error:
                answered = iter([error] * len(asked))
        return [next(answered) if outcome is None else outcome for outcome in outcomes]


def _failed(image: dict[Preprocess, Pixels] | RequestError) -> RequestError:
    assert isinstance(image, RequestError)
    return image
