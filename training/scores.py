"""Metrics of a set of predictions, and the temperature that calibrates them."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import accuracy_score, f1_score, recall_score
from torch import Tensor
from torch.nn import functional as F

from mosa_deploy.bundles.record import Record
from training.label_scores import ECE_BINS, label_metrics, label_row
from training.recipe import Recipe
from training.tune_options import Select

TEMPERATURES = 0.05, 20.0
"""The bounds of the temperature."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T between 0.05 and 20 with the lowest cross entropy of softmax(logits / T); arXiv 1706.04599.

    `logits` are (N, K), `labels` (N,).
    """

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits.double() / math.exp(log_temperature), labels))

    found = minimize_scalar(loss, bounds=(math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1])), method="bounded")
    return math.exp(float(found.x))


def classification_metrics(probabilities: NDArray[np.float32], labels: Tensor) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro-F1, negative log likelihood (nats) and expected calibration error.

    `probabilities` are (N, K), `labels` (N,). The balanced accuracy is the mean recall of the classes that occur in
    `labels`; macro-F1 is the mean F1 of those that occur in `labels` or are predicted. The calibration error has 15
    bins (arXiv 1706.04599).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.classification import multiclass_calibration_error
    given = torch.from_numpy(probabilities)
    ece = multiclass_calibration_error(given, labels, num_classes=given.shape[1], n_bins=ECE_BINS)
    true, predicted = labels.numpy(), probabilities.argmax(1)
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "balanced_accuracy": balanced_accuracy(true, predicted),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0.0)),
        "nll": float(F.nll_loss(given.clamp_min(1e-12).log(), labels)),
        "ece": float(ece),
    }


def measure(record: Record, scores: NDArray[np.float32], labels: Tensor) -> dict[str, float]:
    """What is measured of a task's calibrated scores (N, K), its kind of labels deciding."""
    if record.per_label is None:
        return classification_metrics(scores, labels)
    return label_metrics(scores, labels, record.per_label.thresholds)


def balanced_accuracy(true: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """The mean recall of the classes that occur in `true`; both are (N,)."""
    return float(recall_score(true, predicted, labels=np.unique(true), average="macro"))


def reliability(
    probabilities: NDArray[np.float32], labels: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean confidence, accuracy and share of predictions of each non-empty bin (b / 15, (b + 1) / 15].

    The sum of share * |confidence - accuracy| is the expected calibration error of `classification_metrics`.
    """
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels.numpy()
    _, which, count = np.unique(np.ceil(confidence * ECE_BINS), return_inverse=True, return_counts=True)
    return np.bincount(which, confidence) / count, np.bincount(which, correct) / count, count / len(labels)


def confusions(matrix: NDArray[np.int64], most: int) -> list[tuple[int, int, int]]:
    """(true, predicted, images) of the `most` largest entries off the diagonal of a confusion matrix (true, predicted).

    Among entries with equally many images, the one with the larger share of its true class comes first.
    """
    found = [(int(i), int(j), int(matrix[i, j])) for i, j in zip(*np.nonzero(matrix), strict=True) if i != j]
    return sorted(found, key=lambda one: (-one[2], matrix[one[0]].sum()))[:most]


def validation_row(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The columns of the history that `rank` reads, from logits (N, K) and labels (N,), or (N, K) of 0 and 1."""
    if labels.ndim == 2:
        return label_row(logits, labels)
    predicted = logits.argmax(1)
    return {
        "validation_loss": float(F.cross_entropy(logits, labels)),
        "validation_accuracy": float((predicted == labels).double().mean()),
        "validation_balanced_accuracy": balanced_accuracy(labels.numpy(), predicted.numpy()),
    }


def figure_of(row: Mapping[str, float]) -> str:
    """The column of the history that says how good an epoch is: accuracy, or mAP of several labels per image."""
    return "validation_map" if "validation_map" in row else "validation_accuracy"


def in_words(column: str) -> str:
    """A column of the history in words: `validation mAP`."""
    return column.replace("_map", "_mAP").replace("_", " ")


def rank(row: Mapping[str, float], select: Select = "accuracy") -> tuple[float, float]:
    """What is larger the better a row of the history is; between equals the lower loss decides."""
    figure, loss = row[figure_of(row)], row.get("validation_loss", 0.0)
    if select == "loss":
        return -loss, figure
    return (row["validation_balanced_accuracy"] if select == "balanced" else figure), -loss


def kept(rows: Sequence[Mapping[str, float]], select: Select = "accuracy") -> int:
    """Index of the row whose state a run keeps: the one of the highest rank, and of those the earliest."""
    return max(range(len(rows)), key=lambda i: rank(rows[i], select))


def stopped_early(rows: Sequence[Mapping[str, float]], recipe: Recipe) -> bool:
    """Whether a run with this history ends before its last epoch: the last `patience` epochs did not beat the best."""
    if not recipe.patience or not 0 < len(rows) < recipe.epochs:
        return False
    return len(rows) - 1 - kept(rows, recipe.select) >= recipe.patience


def early_ending(rows: Sequence[Mapping[str, float]], recipe: Recipe) -> str:
    """Why a run ended before its last epoch, in words; empty if it did not."""
    if not stopped_early(rows, recipe):
        return ""
    measure = {"balanced": "balanced accuracy", "map": "mAP"}.get(recipe.select, recipe.select)
    return (
        f"stopped after epoch {len(rows)} of {recipe.epochs}: no better {measure} on validation than in epoch"
        f" {kept(rows, recipe.select) + 1}, {recipe.patience} before (--patience {recipe.patience})"
    )
