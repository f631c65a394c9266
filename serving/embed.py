"""`POST /v1/embed`: from images to features, a task's own or the plain backbone's."""

import time
from functools import partial

from mosa_deploy.bundles.feature_statistics import unit_length
from mosa_deploy.client.embeddings import Embedding
from serving import metrics
from serving.backend import Embedded, Lease
from serving.embed_body import EmbedRequest
from serving.errors import RequestError
from serving.handler import ImageHandler, RequestStats


class EmbedHandler(ImageHandler):
    """Handles a request as `POST /classify` does, in the same batches."""

    async def handle(self, asked: EmbedRequest, stats: RequestStats) -> list[Embedding | RequestError]:
        """One result per image and task, in their order."""
        start = time.monotonic()
        ask = partial(self.backend.embed, plain=asked.plain)
        outcomes = await self.outcomes(asked.images, stats, ask, asked.plain)
        milliseconds = round(1000 * (time.monotonic() - start), 3)
        results: list[Embedding | RequestError] = []
        for outcome in outcomes:
            task, lane, status = outcome.labels
            metrics.embeddings.labels("" if asked.plain else task, lane, status).inc()
            lease, found = outcome.lease, outcome.found
            if isinstance(found, RequestError):
                results.append(found)
            else:
                assert isinstance(lease, Lease)
                results.append(embedding(lease, found, asked, milliseconds))
        return results


def embedding(lease: Lease, found: Embedded, asked: EmbedRequest, milliseconds: float) -> Embedding:
    """What the answer says of an image."""
    features = unit_length(found.features) if asked.normalise else found.features
    return Embedding(
        task=None if asked.plain else lease.task,
        backbone=lease.backbone,
        bundle=None if asked.plain else lease.digest,
        embedding=tuple(features.tolist()),
        milliseconds=milliseconds,
    )
