"""Several labels per image: what is measured of them, and how their scores are calibrated and their thresholds chosen.

Each label is scaled by itself as J. Platt does (Advances in Large Margin Classifiers, 1999), and answered from the
score on that gives it the best F1 on validation.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_recall_curve
from torch import Tensor

from mosa_deploy.adapters.loss import label_loss
from mosa_deploy.bundles.answers import PerLabel, decide
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import listed

ECE_BINS = 15
"""The number of bins of the expected calibration error, arXiv 1706.04599."""

SCALES = 0.05, 20.0
"""The bounds of a label's scale, those of one over the temperature of a task with one class per image."""

SHUFFLES = 19
"""With so many random pairings of scores and images, the best of 20 pairings is the true one in 5 % of the cases."""

Targets = NDArray[np.int64]
"""(n, K), 0 or 1."""


def as_targets(labels: Tensor) -> Targets:
    """Labels (n, K) of 0 and 1 as whole numbers."""
    return labels.numpy().astype(np.int64)


def average_precisions(targets: Targets, scores: Array) -> NDArray[np.float64]:
    """The average precision of each label (K,); NaN for a label that no image has."""
    found = [average_precision_score(targets[:, k], scores[:, k]) if targets[:, k].any() else math.nan
             for k in range(targets.shape[1])]  # fmt: skip
    return np.array(found)


def mean_average_precision(targets: Targets, scores: Array) -> float:
    """The mean of the average precisions of the labels that some image has; 0 if there are none."""
    found = average_precisions(targets, scores)
    return 0.0 if np.isnan(found).all() else float(np.nanmean(found))


def label_row(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The columns of the history that `training.scores.rank` reads, from logits and labels (n, K)."""
    return {
        "validation_loss": float(label_loss(logits, labels, "bce")),
        "validation_map": mean_average_precision(as_targets(labels), logits.numpy()),
    }


def label_metrics(scores: Array, labels: Tensor, thresholds: Sequence[float]) -> dict[str, float]:
    """Mean average precision, macro- and micro-F1, accuracy, negative log likelihood (nats) and calibration error.

    Accuracy is the share of the images all of whose labels are right, as scikit-learn has it. The likelihood is that of
    a label, in the mean, and the calibration error, in 15 bins, is that of all scores together.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.classification import binary_calibration_error
    targets, answered = as_targets(labels), decide(scores, thresholds).astype(np.int64)
    given = torch.from_numpy(scores.astype(np.float64)).clamp(1e-12, 1 - 1e-12)
    return {
        "map": mean_average_precision(targets, scores),
        "macro_f1": float(np.mean(f1_scores(targets, answered))),
        "micro_f1": float(f1_score(targets.ravel(), answered.ravel(), zero_division=0.0)),
        "accuracy": float(accuracy_score(targets, answered)),
        "nll": float(torch.nn.functional.binary_cross_entropy(given, labels.double())),
        "ece": float(binary_calibration_error(given.flatten(), labels.flatten().long(), n_bins=ECE_BINS)),
    }


def f1_scores(targets: Targets, answered: Targets) -> list[float]:
    """The F1 of each label; 0 where it is neither there nor answered."""
    return [float(f1_score(targets[:, k], answered[:, k], zero_division=0.0)) for k in range(targets.shape[1])]


def calibrate(logits: Tensor, labels: Tensor) -> PerLabel:
    """Fit scale and offset of each label and choose its threshold, by logits and labels (n, K) of validation.

    A label that all images have, or none, keeps its plain sigmoid and a threshold of a half.
    """
    targets, plain = as_targets(labels), PerLabel.uncalibrated(labels.shape[1])
    fits = [
        fit_sigmoid(z, y) if 0 < y.sum() < len(y) else (1.0, 0.0)
        for z, y in zip(logits.double().numpy().T, targets.T, strict=True)
    ]
    scaled = plain.model_copy(update={"scales": tuple(s for s, _ in fits), "offsets": tuple(o for _, o in fits)})
    scores = scaled.scores(logits.numpy())
    thresholds = tuple(
        choose_threshold(p, y) if 0 < y.sum() < len(y) else 0.5 for p, y in zip(scores.T, targets.T, strict=True)
    )
    return scaled.model_copy(update={"thresholds": thresholds})


def fit_sigmoid(logits: NDArray[np.float64], targets: Targets) -> tuple[float, float]:
    """The scale and the offset with the lowest cross entropy of sigmoid(scale z + offset), for one label (n,).

    Targets are not 0 and 1 but (n1 + 1) / (n1 + 2) and 1 / (n0 + 2), as Platt has it: so a label that is separated well
    does not become certain.
    """
    ones = int(targets.sum())
    wanted = np.where(targets == 1, (ones + 1) / (ones + 2), 1 / (len(targets) - ones + 2))

    def loss(parameters: NDArray[np.float64]) -> float:
        z = math.exp(parameters[0]) * logits + parameters[1]
        return float(np.mean(np.logaddexp(0.0, z) - wanted * z))

    bounds = [(math.log(SCALES[0]), math.log(SCALES[1])), (None, None)]
    found = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=bounds)
    return math.exp(float(found.x[0])), float(found.x[1])


def choose_threshold(scores: Array, targets: Targets) -> float:
    """The threshold with the best F1 for one label (n,): halfway between the last score it takes and the next one.

    Halfway, so that a score which comes out a little otherwise on another machine is answered alike.
    """
    precision, recall, reached = precision_recall_curve(targets, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1[: len(reached)]))
    below = float(reached[best - 1]) if best else 0.0
    return (float(reached[best]) + below) / 2


def label_remarks(scores: Array, labels: Tensor, classes: Sequence[str]) -> list[str]:
    """A line if the scores order the images no better than chance, and one on labels about which nothing is known."""
    targets, random = as_targets(labels), np.random.default_rng(0)
    true = mean_average_precision(targets, scores)
    shuffled = [mean_average_precision(targets, scores[random.permutation(len(scores))]) for _ in range(SHUFFLES)]
    found = []
    if true <= max(shuffled):
        found.append(
            f"warning: this learned nothing that {len(labels)} images can show: mAP {true:.3f}, and up to"
            f" {max(shuffled):.3f} if scores go to images at random; look at the labels, at --lr and at the backbone"
        )
    alike = [name for name, column in zip(classes, targets.T, strict=True) if column.sum() in (0, len(targets))]
    if alike:
        found.append(
            f"warning: all of these images have {listed(alike)}, or none has: such a label is answered from a score of"
            " 0.5 on, which nothing has tested"
        )
    return found
