"""Say so when a result is no better than guessing, and what to look at."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from training.scores import TEMPERATURES

LEVEL = 0.05
"""A result that guessing reaches at least so often tells nothing."""

LOOK_AT = (
    "look at the labels (is each image in the folder of its class?), at --lr (try a tenth, and ten times as much), at"
    " the preprocessing (are the images readable at this --image-size, is 16-bit grey scaled by --white-level?) and at"
    " the backbone (random weights, or pre-trained on other images?)"
)


def chance_remarks(
    true: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str], chosen_from: int = 1
) -> list[str]:
    """A line if the predictions are no better than guessing, else none.

    Guessing is right as often as labels and predictions would agree if they were independent. The binomial test is
    corrected for `chosen_from`, the number of candidates of which the best was chosen on these images (Bonferroni).
    """
    images, right = len(true), int((true == predicted).sum())
    counts = [np.bincount(given, minlength=len(classes)) / images for given in (true, predicted)]
    most = int(counts[0].argmax())
    level = LEVEL / chosen_from
    result = f"accuracy {right / images:.3f} on {images} images"
    share = f"always answering {classes[most]!r} gives {counts[0][most]:.3f}"
    if _unlikely(right, images, float(counts[0] @ counts[1]), level):
        if right / images > counts[0][most]:
            return []
        return [
            f"warning: {result} is no better than one answer for all: {share}. The classes have very different numbers"
            " of images: see the recall of each class"
        ]
    if not _unlikely(images, images, float(counts[0][most]), level):
        return [f"warning: {images} images are too few to tell the result from guessing: {result}, and {share}"]
    return [f"warning: this learned nothing that {images} images can show: {result}, and {share}; {LOOK_AT}"]


def temperature_remarks(temperature: float) -> list[str]:
    """A line if the fit of the temperature stopped at one of its bounds, else none."""
    low, high = TEMPERATURES
    if temperature > 0.99 * high:
        return [
            f"warning: the temperature is at its bound, {temperature:.2f}: the scores say nothing about how sure the"
            " task is, or are far too large: try a lower --lr"
        ]
    if temperature < 1.01 * low:
        return [
            f"the temperature is at its bound, {temperature:.2f}, as happens when every validation image is right: the"
            " scores of new images will be too sure"
        ]
    return []


def _unlikely(right: int, images: int, rate: float, level: float) -> bool:
    """Whether guesses that are right at this rate would seldom be right so often."""
    return bool(binomtest(right, images, min(rate, 1.0), alternative="greater").pvalue < level)
