"""`POST /classify`: from images to answers, each image by its tasks."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from mosa_deploy.bundles.answers import no_threshold, ranked
from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.client.schema import Answer, Failure, Prediction
from serving import metrics
from serving.backend import Answered, Backend, Lease, Outcome
from serving.errors import RequestError, late
from serving.images import read_pixels
from serving.settings import Settings


@dataclass(frozen=True)
class SentImage:
    """One image file of a request, with the tasks that should classify it."""

    name: str
    content: bytes
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """Which of a task's classes a request wants to hear of."""

    top_k: int | None = None
    """At most so many; None is what `mosa_deploy.bundles.answers.ranked` says."""
    threshold: float | None = None
    """Takes the place of the thresholds of a task with several labels per image."""


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

    def add(self, lease: Lease, answered: Answered) -> None:
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


class ClassifyHandler:
    """Handles a request: leases versions, decodes images in threads, and infers, all within one deadline."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.backend, self.settings = backend, settings
        self.decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="mosa-decode")

    async def handle(
        self, sent: Sequence[SentImage], wanted: Wanted, stats: RequestStats
    ) -> list[Answer | RequestError]:
        """One result per image and task, in their order."""
        start = time.monotonic()
        end = start + self.settings.deadline_s
        pairs = [(i, task) for i, image in enumerate(sent) for task in image.tasks]
        with stats.part("load"):
            leases = await self.backend.lease([*dict.fromkeys(task for _, task in pairs)], end - time.monotonic())
        held = [lease for lease in leases.values() if isinstance(lease, Lease)]
        leases = {task: refused(lease, wanted) or lease for task, lease in leases.items()}
        try:
            with stats.part("decode"):
                pixels = await self._decode(sent, leases, end)
            with stats.part("infer"):
                outcomes = await self._infer(pairs, leases, pixels, end)
        finally:
            if held:
                await self.backend.release(held)
        seconds = time.monotonic() - start
        results: list[Answer | RequestError] = []
        for (_, task), outcome in zip(pairs, outcomes, strict=True):
            lease = leases[task]
            status = outcome.status if isinstance(outcome, RequestError) else 200
            known, lane = (task, lease.lane) if isinstance(lease, Lease) else ("", "")
            metrics.answers.labels(known, lane, str(status)).inc()
            if isinstance(outcome, RequestError):
                results.append(outcome)
            else:
                stats.add(_leased(lease), outcome)
                results.append(answer(_leased(lease), outcome, wanted, 1000 * seconds))
        return results

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

    def _read(self, image: SentImage, leases: Mapping[str, Lease | RequestError]) -> "Read":
        """Let a thread decode an image, unless no task is there to classify it."""
        found = [lease for lease in map(leases.__getitem__, image.tasks) if isinstance(lease, Lease)]
        preprocesses = list(dict.fromkeys(lease.preprocess for lease in found))
        if not preprocesses:
            return Read(image.name, [], None)
        work = partial(read_pixels, image.content, preprocesses, self.settings.max_pixels)
        return Read(image.name, preprocesses, asyncio.get_running_loop().run_in_executor(self.decoders, work))

    async def _infer(
        self,
        pairs: Sequence[tuple[int, str]],
        leases: Mapping[str, Lease | RequestError],
        pixels: Sequence[dict[Preprocess, Pixels] | RequestError],
        end: float,
    ) -> list[Outcome]:
        """One outcome per pair of an image and a task."""
        outcomes: list[Outcome | None] = []
        asked: list[tuple[Lease, Pixels]] = []
        for i, task in pairs:
            lease, image = leases[task], pixels[i]
            if isinstance(lease, RequestError) or isinstance(image, RequestError):
                outcomes.append(lease if isinstance(lease, RequestError) else _failed(image))
            else:
                outcomes.append(None)
                asked.append((lease, image[lease.preprocess]))
        answered: Iterator[Outcome] = iter(())
        if asked:
            try:
                answered = iter(await self.backend.infer(asked, end - time.monotonic()))
            except RequestError as error:
                answered = iter([error] * len(asked))
        return [next(answered) if outcome is None else outcome for outcome in outcomes]


def refused(lease: Lease | RequestError, wanted: Wanted) -> RequestError | None:
    """Why a version cannot answer as is wanted; None if it can, or there is none."""
    if wanted.threshold is None or isinstance(lease, RequestError) or lease.thresholds is not None:
        return None
    return RequestError(422, no_threshold(lease.task))


def answer(lease: Lease, answered: Answered, wanted: Wanted, milliseconds: float) -> Answer:
    """The answer with the classes that are wanted, the likeliest first."""
    order = ranked(answered.probabilities, lease.thresholds, wanted.top_k, wanted.threshold)
    return Answer(
        task=lease.task,
        predictions=tuple(Prediction(label=lease.classes[k], score=float(answered.probabilities[k])) for k in order),
        bundle=lease.digest,
        milliseconds=round(milliseconds, 3),
    )


def result(task: str, answer: Answer | RequestError) -> Answer | Failure:
    """The form that an answer or an error takes as one of several results."""
    if isinstance(answer, Answer):
        return answer
    return Failure(task=task, status=answer.status, detail=answer.reason)


def _leased(lease: Lease | RequestError) -> Lease:
    assert isinstance(lease, Lease)
    return lease


def _failed(image: dict[Preprocess, Pixels] | RequestError) -> RequestError:
    assert isinstance(image, RequestError)
    return image
