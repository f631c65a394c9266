"""Figures of a set of predictions, and the temperature that calibrates them."""

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

ECE_BINS = 15


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in 0.05 .. 20 of the least cross entropy of softmax(logits / T), arXiv 1706.04599."""

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits.double() / math.exp(log_temperature), labels))

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return math.exp(float(found.x))


def figures(probabilities: NDArray[np.float32], labels: Tensor) -> dict[str, float]:
    """Accuracy, negative log likelihood and expected calibration error (15 bins, arXiv 1706.04599)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.classification import multiclass_calibration_error
    given = torch.from_numpy(probabilities)
    ece = multiclass_calibration_error(given, labels, num_classes=given.shape[1], n_bins=ECE_BINS)
    return {
        "accuracy": float((given.argmax(1) == labels).float().mean()),
        "nll": float(F.nll_loss(given.clamp_min(1e-12).log(), labels)),
        "ece": float(ece),
    }
