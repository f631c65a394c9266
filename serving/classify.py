"""`POST /classify`: from images to answers, each image by its tasks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mosa_deploy.bundles.answers import no_threshold, ranked
from mosa_deploy.client.schema import Answer, Failure, Prediction
from serving import metrics
from serving.assignment import SentImage
from serving.backend import Answered, Lease
from serving.errors import RequestError
from serving.handler import ImageHandler, RequestStats


@dataclass(frozen=True)
class Wanted:
    """What the answers of a request should hold."""

    top_k: int | None = None
    """At most so many; None is what `mosa_deploy.bundles.answers.ranked` says."""
    threshold: float | None = None
    """Takes the place of the thresholds of a task with several labels per image."""
    unknown: bool = False
    """Whether they say how unknown an image is to the task."""
    abstain: float | None = None
    """Above this score of `unknown` no class is answered."""


class ClassifyHandler(ImageHandler):
    """Handles a request: leases versions, decodes images in threads, and infers, all within one deadline."""

    async def handle(
        self, sent: Sequence[SentImage], wanted: Wanted, stats: RequestStats
    ) -> list[Answer | RequestError]:
        """One result per image and task, in their order."""
        start = time.monotonic()
        ask = partial(self.backend.infer, unknown=wanted.unknown)
        outcomes = await self.outcomes(sent, stats, ask, refuse=partial(refused, wanted=wanted))
        milliseconds = 1000 * (time.monotonic() - start)
        results: list[Answer | RequestError] = []
        for outcome in outcomes:
            metrics.answers.labels(*outcome.labels).inc()
            lease, found = outcome.lease, outcome.found
            if isinstance(found, RequestError):
                results.append(found)
            else:
                assert isinstance(lease, Lease)
                results.append(answer(lease, found, wanted, milliseconds))
        return results


def refused(lease: Lease, wanted: Wanted) -> RequestError | None:
    """Why a version cannot answer as is wanted; None if it can."""
    if wanted.threshold is None or lease.thresholds is not None:
        return None
    return RequestError(422, no_threshold(lease.task))


def answer(lease: Lease, answered: Answered, wanted: Wanted, milliseconds: float) -> Answer:
    """The answer with the classes that are wanted, the likeliest first; none if the image is too unknown."""
    unknown, abstained = answered.unknown, None
    if wanted.abstain is not None and unknown is not None:
        abstained = unknown > wanted.abstain
    scores = answered.probabilities
    order = [] if abstained else ranked(scores, lease.thresholds, wanted.top_k, wanted.threshold)
    return Answer(
        task=lease.task,
        predictions=tuple(Prediction(label=lease.classes[k], score=float(scores[k])) for k in order),
        bundle=lease.digest,
        milliseconds=round(milliseconds, 3),
        unknown=unknown,
        abstained=abstained,
        note=answered.note,
    )


def result(task: str, answer: Answer | RequestError) -> Answer | Failure:
    """The form that an answer or an error takes as one of several results."""
    if isinstance(answer, Answer):
        return answer
    return Failure(task=task, status=answer.status, detail=answer.reason)
