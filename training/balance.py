"""Classes of unequal size: their weights in the loss, how often they are drawn, and a word about small ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mosa_deploy.errors import listed
from training.data import class_counts
from training.tune_options import Balance

FEW = 10
"""A class with fewer images is named."""

SHARE = 50
"""A class with fewer than one image for this many of the largest class is named."""


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """The weight (K,) of each class, N / (K n_k) for n_k of N images, as scikit-learn's `class_weight="balanced"`.

    The mean weight of the images is 1.
    """
    return len(labels) / (classes * labels.bincount(minlength=classes).clamp_min(1))


def epoch_order(labels: Tensor, classes: int, balance: Balance) -> Tensor:
    """The images of an epoch by number, (N,): each once, or with `sampler` N draws in which all classes are as likely.

    The random numbers are those of torch's global generator.
    """
    if balance == "sampler":
        return torch.multinomial(class_weights(labels, classes)[labels], len(labels), replacement=True)
    return torch.randperm(len(labels))


def turns_of(labels: Tensor) -> Tensor:
    """How many images of the same class come before each: labels (N,) -> (N,)."""
    turns = torch.empty_like(labels)
    for label in labels.unique():
        where = labels == label
        turns[where] = torch.arange(int(where.sum()))
    return turns


def small_class_remarks(labels: Tensor, classes: Sequence[str], balance: Balance) -> list[str]:
    """A line if some class has fewer than 10 training images, or a fiftieth of the largest, else none."""
    counts = class_counts(labels, len(classes))
    least = max(FEW, max(counts) / SHARE)
    small = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < least]
    if not small:
        return []
    if labels.ndim == 2:
        return [f"warning: few training images have {listed(small)}: look at the average precision of each label"]
    advice = "" if balance != "none" else "; --balance loss or --balance sampler gives all classes the same weight"
    return [
        f"warning: few training images of {listed(small)}, {max(counts)} of the largest class: look at the recall of"
        f" each class, and at the balanced accuracy{advice}"
    ]
