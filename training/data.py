"""A set of images as uint8 pixels at the backbone's input size: in memory, or as `training.stream` reads them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import DataError
from training.tasks.base import Example

Batch = tuple[Tensor, Tensor]
"""Pixels (B, H, W, 3) uint8 and labels (B,) int64."""


class ImageSource(Protocol):
    """What a model is trained on or validated by: its images may be decoded only when they are needed."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, also those of images that cannot be read, unless that is known."""
        ...

    def __len__(self) -> int:
        """The number of labels."""
        ...

    def batches(self, order: Tensor, size: int) -> Iterator[Batch]:
        """The images in this order, `size` at a time."""
        ...

    def settled(self) -> "ImageSet":
        """The images that can be read, after all have been decoded."""
        ...


class ImageSet(ImageSource, Protocol):
    """A set whose images have all been decoded, in memory or in a cache on disk."""

    @property
    def examples(self) -> Sequence[Example]:
        """What the images were decoded from."""
        ...

    def take(self, index: Sequence[int] | Tensor) -> Tensor:
        """The pixels of these images, (B, H, W, 3) uint8."""
        ...

    def split(self, size: int) -> Iterator[Tensor]:
        """The pixels of all images in their order, `size` images at a time."""
        ...


@dataclass(frozen=True)
class Images:
    """A set in memory: pixels (N, H, W, 3) uint8, labels (N,) int64, and the examples they were decoded from."""

    pixels: Tensor
    labels: Tensor
    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Sequence[int] | Tensor) -> Tensor:
        """See `ImageSet.take`."""
        return self.pixels[index]

    def split(self, size: int) -> Iterator[Tensor]:
        """See `ImageSet.split`."""
        yield from torch.split(self.pixels, size)

    def batches(self, order: Tensor, size: int) -> Iterator[Batch]:
        """See `ImageSource.batches`."""
        return ((self.pixels[index], self.labels[index]) for index in order.split(size))

    def settled(self) -> ImageSet:
        """See `ImageSource.settled`."""
        return self


def check_classes(images: ImageSet, classes: Sequence[str], what: str) -> None:
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


def absent_remarks(images: ImageSet, classes: Sequence[str], what: str) -> list[str]:
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
