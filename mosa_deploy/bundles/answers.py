"""What the outputs of a head mean: shares of one class, or each label by itself; and which of them are answered.

    one class per image          score = softmax(z / temperature)             the likeliest class is answered
    several labels per image     score_k = sigmoid(scale_k z_k + offset_k)    every label with score_k >= threshold_k

Everything that follows from this difference asks here, or `Record.scores` and `Record.decide`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mosa_deploy.bundles.preprocess import Array

TOP_K = 5
"""How many classes are answered where nothing is said, by a task with one class per image."""

Thresholds = Sequence[float] | None
"""The threshold of each label; None where an image has one class."""

Decisions = NDArray[np.bool_]

Places = NDArray[np.intp]

Finite = Annotated[float, Field(allow_inf_nan=False)]


class PerLabel(BaseModel):
    """How the labels of a task with several labels per image are scored and answered, each by itself.

    Scale and offset are those of Platt scaling, fitted on validation, where the thresholds are chosen too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scales: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    offsets: tuple[Finite, ...]
    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...]

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if not len(self.scales) == len(self.offsets) == len(self.thresholds):
            raise ValueError("scales, offsets and thresholds are not equally many: one of each for every label")
        return self

    @classmethod
    def uncalibrated(cls, count: int) -> Self:
        """Plain sigmoids, answered from a half on, for a task that was calibrated nowhere."""
        return cls(scales=(1.0,) * count, offsets=(0.0,) * count, thresholds=(0.5,) * count)

    def scores(self, logits: Array) -> Array:
        """The probability of each label, (..., K) -> (..., K)."""
        scaled = logits.astype(np.float64) * self.scales + self.offsets
        # The sigmoid without overflow, and exact where it is near 0.
        return np.exp(-np.logaddexp(0.0, -scaled)).astype(np.float32)


class HasClasses(Protocol):
    """What says of a version which classes it answers, and in which way."""

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102 - see Record

    @property
    def multi_label(self) -> bool: ...  # noqa: D102 - see Record


def decide(scores: Array, thresholds: Thresholds) -> Decisions:
    """Which classes are answered, scores (..., K) -> (..., K): the likeliest, or those that reach their thresholds.

    Without thresholds, logits give the same as scores.
    """
    if thresholds is None:
        return np.asarray(np.arange(scores.shape[-1]) == scores.argmax(axis=-1)[..., None])
    return np.asarray(scores.astype(np.float64) >= np.asarray(thresholds, dtype=np.float64))


def expected(labels: NDArray[Any], count: int) -> Decisions:
    """What right answers are, (n, K), for labels (n,) as numbers of `count` classes, or (n, K) as 0 and 1."""
    return labels.astype(bool) if labels.ndim == 2 else np.asarray(np.arange(count) == labels[:, None])


def ranked(scores: Array, thresholds: Thresholds, top_k: int | None, threshold: float | None = None) -> list[int]:
    """The places of the classes to answer, the likeliest first, of scores (K,).

    With one class per image these are the `top_k` likeliest. With several labels they are all that reach their
    thresholds, or `threshold` in their place, and of these at most `top_k`.
    """
    _, classes = ranked_rows(scores[None], thresholds, top_k, threshold)
    return [int(k) for k in classes]


def ranked_rows(
    scores: Array, thresholds: Thresholds, top_k: int | None, threshold: float | None = None
) -> tuple[Places, Places]:
    """The same for many images at once, scores (n, K): the image and the class of each answer, image by image."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    answered, most = np.ones_like(order, dtype=bool), top_k
    if thresholds is None:
        most = top_k or TOP_K
    else:
        reached = decide(scores, thresholds if threshold is None else [threshold] * scores.shape[-1])
        answered = np.take_along_axis(reached, order, axis=-1)
    if most is not None:
        answered &= answered.cumsum(axis=-1) <= most
    images, ranks = np.nonzero(answered)
    return images, order[images, ranks]


def threshold_fault(threshold: float | None) -> str | None:
    """What is wrong with a threshold; None if nothing is."""
    return None if threshold is None or 0 <= threshold <= 1 else f"{threshold:g} is no threshold: 0 to 1"


def no_threshold(task: str) -> str:
    """Why a task with one class per image takes no threshold."""
    return f"'{task}' answers with one class per image, so no threshold is taken: leave it out, or send top_k"
