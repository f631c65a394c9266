"""A version of a task in a lane: how it is asked, and how its canary proves it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mosa_deploy.bundles.answers import decide
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.canary import CANARY_PIXELS
from mosa_deploy.bundles.feature_statistics import FeatureStatistics
from mosa_deploy.bundles.gate import LabelledImage
from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from mosa_deploy.bundles.record import Record
from mosa_deploy.errors import BundleError, ParityError
from mosa_deploy.runtimes.names import CANARY_TOLERANCE
from mosa_deploy.runtimes.shared import Head, apply_head
from mosa_deploy.runtimes.tensorrt_record import AGAIN
from serving.batching import Batcher
from serving.errors import RequestError
from serving.images import read_pixels
from serving.items import Item
from serving.lanes import AnyLane, SharedLane
from serving.store import Version

CANARY_SECONDS = 60.0

CHUNK = 4
"""Images that are decoded and asked at once; requests that come meanwhile wait for no more."""

NAMED = 5
"""The largest number of images that an error names."""


@dataclass(eq=False)
class LoadedTask:
    """A version of a task that can answer; `users` counts the requests that hold it."""

    version: Version
    lane: AnyLane
    slot: int
    head: Head | None
    """None if the graph has a head of its own."""
    columns: slice = field(default_factory=lambda: slice(None))
    """The features that the head reads."""
    statistics: FeatureStatistics | None = None
    """Those of its features, if the bundle has them and the lane gives features."""
    fallback: str | None = None
    """Why a later candidate than the first serves it."""
    postponed: bool = False
    """Whether an earlier candidate has yet to be compared with fp32."""
    users: int = 0
    retired: bool = False
    pinned: bool = False

    def item(self, pixels: Pixels, deadline: float, plain: bool = False) -> Item:
        """Prepare an image (H, W, 3) for this version's lane; with `plain` for the backbone without its adapter."""
        slot = self.lane.empty if plain and isinstance(self.lane, SharedLane) else self.slot
        return Item(self.lane, pixels, self.version.record.preprocess, slot, deadline)

    @property
    def without_features(self) -> str | None:
        """Why it cannot give features; None if it can."""
        if self.head is not None:
            return None
        return f"'{self.version.record.task}' is served in the {self.lane.kind} lane, which gives no features"

    @property
    def without_unknown(self) -> str | None:
        """Why it cannot say how unknown an image is; None if it can."""
        if self.statistics is not None or self.without_features:
            return self.without_features
        task = self.version.record.task
        if self.version.record.multi_label:
            return f"'{task}' answers with several labels per image, for which nothing is known of unknown ones"
        return f"the bundle of '{task}' has no statistics of its features: tune it again"

    def features(self, row: Array, plain: bool = False) -> Array:
        """The lane's output of an image (C,) -> what the head reads (F,), or with `plain` timm's own head would."""
        columns = self.columns
        if plain and isinstance(self.lane, SharedLane):
            columns = self.lane.bank.layout.columns("cls", self.slot)
        return row[columns]

    def unknown(self, row: Array, answer: Array) -> float | None:
        """How unknown an image is, by the lane's output (C,) and probabilities (K,); None if that cannot be told."""
        if self.statistics is None:
            return None
        return float(self.statistics.unknown(self.features(row)[None], answer[None])[0])

    def probabilities(self, rows: Array) -> Array:
        """The lane's output, (n, C) or (n, K) -> calibrated probabilities (n, K)."""
        # Values that are not finite are looked for afterwards.
        with np.errstate(over="ignore", invalid="ignore"):
            logits = rows if self.head is None else apply_head(rows[:, self.columns], self.head)
            return self.version.record.scores(logits)


def prove(loaded: LoadedTask, bundle: Bundle, batcher: Batcher) -> None:
    """Run the canary like any request, and compare within the tolerance of what the lane computes in.

    Raises:
        BundleError: the canary is not made of images.
        ParityError: the probabilities are not those that were recorded.
    """
    record, deadline = bundle.record, time.monotonic() + CANARY_SECONDS
    try:
        pixels = [read_pixels(content, [record.preprocess], CANARY_PIXELS)[0] for content in bundle.canary.images]
    except RequestError as error:
        raise BundleError(f"the canary of '{record.task}' is {error}") from None
    items = [loaded.item(each, deadline) for each in pixels]
    batcher.submit(items, bounded=False)
    difference, plan = bundle.canary.error(loaded.probabilities(outputs_of(items))), loaded.lane.plan
    tolerance = CANARY_TOLERANCE[plan.precision]
    if not difference <= tolerance:
        way_out = AGAIN if plan.runtime == "tensorrt" else "export the task again with its own backbone"
        raise ParityError(
            f"'{record.task}': the {loaded.lane.kind} graph misses its canary's probabilities by {difference:.1e},"
            f" above {tolerance:.0e} for {plan}: {way_out}"
        )


def outputs_of(items: Sequence[Item]) -> Array:
    """Wait for the lane's outputs (n, ...)."""
    return np.stack([item.future.result() for item in items])


def answers(
    loaded: LoadedTask,
    images: Sequence[LabelledImage],
    batcher: Batcher,
    max_pixels: int,
    preprocess: Preprocess | None = None,
) -> tuple[bool, ...]:
    """Which images a version answers rightly; they are read by its own preprocess unless another one is given.

    Raises:
        RequestError: 422 if an image cannot be read.
    """
    record, right, faults = loaded.version.record, list[bool](), list[str]()
    for start in range(0, len(images), CHUNK):
        part, items = images[start : start + CHUNK], []
        deadline = time.monotonic() + CANARY_SECONDS
        for image in part:
            try:
                (pixels,) = read_pixels(image.content, [preprocess or record.preprocess], max_pixels)
                items.append(loaded.item(pixels, deadline))
            except RequestError as error:
                faults.append(f"{image.member}: {error.reason}")
        if not faults:
            batcher.submit(items, bounded=False)
            rows = loaded.probabilities(outputs_of(items))
            right += [is_right(record, row, image) for row, image in zip(rows, part, strict=True)]
    if faults:
        more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise RequestError(422, "; ".join(faults[:NAMED]) + more)
    return tuple(right)


def is_right(record: Record, row: Array, image: LabelledImage) -> bool:
    """Whether a row of probabilities (K,) answers the image's class, or exactly its labels."""
    answered = {record.classes[k] for k in np.flatnonzero(decide(row, record.thresholds))}
    return bool(np.isfinite(row).all()) and answered == {*image.labels}
