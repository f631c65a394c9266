"""A set in memory: every image as uint8 pixels at the backbone's input size."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import DataError
from training.tasks.base import Example


@dataclass(frozen=True)
class Images:
    """A decoded split: pixels (N, H, W, 3) uint8, labels (N,) int64, and the examples they were decoded from."""

    pixels: Tensor
    labels: Tensor
    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.labels)


def check_classes(images: Images, classes: Sequence[str], what: str) -> None:
    """Check that there are at least two classes, and that each has an image in this split.

    Raises:
        DataError: there are fewer, or a class has no image.
    """
    if len(classes) < 2:
        raise DataError(f"the task has {len(classes)} class: classification needs at least two")
    counts = Counter(images.labels.tolist())
    empty = [name for label, name in enumerate(classes) if not counts[label]]
    if empty:
        raise DataError(f"no {what} image of class {', '.join(empty)}: add images or remove the class")


def absent_remarks(images: Images, classes: Sequence[str], what: str) -> list[str]:
    """A line if a set has no image of some class, because none can be read, else none."""
    counts = Counter(images.labels.tolist())
    absent = [name for label, name in enumerate(classes) if not counts[label]]
    if not absent:
        return []
    return [f"warning: no {what} image of class {', '.join(absent)}: the figures say nothing about it"]


def normalise(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 on the same device, as `Preprocess.normalise`."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (preprocess.mean, preprocess.std))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
