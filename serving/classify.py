"""`POST /classify`: from images to answers, each image by its tasks."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

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


class ClassifyHandler:
    """Handles a request: leases versions, decodes images in threads, and infers, all within one deadline."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.backend, self.settings = backend, settings
        self.decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="mosa-decode")

    async def handle(self, sent: Sequence[SentImage], top_k: int, stats: RequestStats) -> list[Answer | RequestError]:
        """One result per image and task, in their order."""
        start = time.monotonic()
        end = start + self.settings.deadline_s
        pairs = [(i, task) for i, image in enumerate(sent) for task in image.tasks]
        with stats.part("load"):
            leases = await self.backend.lease([*dict.fromkeys(task for _, task in pairs)], end - time.monotonic())
        held = [lease for lease in leases.values() if isinstance(lease, Lease)]
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
                results.append(ranked(_leased(lease), outcome, top_k, 1000 * seconds))
        return results

    async def _decode(
        self, sent: Sequence[SentImage], leases: Mapping[str, Lease | RequestError], end: float
    ) -> list[dict[Preprocess, Pixels] | RequestError]:
        """For each image, its pixels (H, W, 3) by the preprocesses of its tasks."""
        loop = asyncio.get_running_loop()

        async def one(image: SentImage) -> dict[Preprocess, Pixels] | RequestError:
            found = [lease for lease in map(leases.__getitem__, image.tasks) if isinstance(lease, Lease)]
            preprocesses = list(dict.fromkeys(lease.preprocess for lease in found))
            if not preprocesses:
                return {}
            try:
                made = loop.run_in_executor(
                    self.decoders, read_pixels, image.content, preprocesses, self.settings.max_pixels
                )
                pixels = await asyncio.wait_for(made, max(0.0, end - time.monotonic()))
            except RequestError as error:
                return RequestError(error.status, f"{image.name}: {error.reason}")
            except TimeoutError:
                return late(self.settings.deadline_s)
            return dict(zip(preprocesses, pixels, strict=True))

        return list(await asyncio.gather(*map(one, sent)))

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


def ranked(lease: Lease, answered: Answered, top_k: int, milliseconds: float) -> Answer:
    """The answer with the `top_k` likeliest classes."""
    order = np.argsort(-answered.probabilities, kind="stable")[:top_k]
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
