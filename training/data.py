"""A set of images as uint8 pixels: in memory, or as `training.stream` reads them.

They have the backbone's input size, and training images that are to be cropped have a margin (`training.augment`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import DataError, listed
from training.tasks.base import Example
from training.tasks.labels import numbers


class Cut(NamedTuple):
    """Which images of a set are in a batch, or in a part of one."""

    rows: Tensor
    """Their rows in the set, (B,) int64."""
    places: Tensor
    """Their places in the whole batch, (B,) int64, in rising order."""
    total: int
    """The number of images in the whole batch."""


def cuts(order: Tensor, size: int) -> list[Cut]:
    """The batches of an epoch that goes through the images in this order, `size` at a time."""
    return [Cut(rows, torch.arange(len(rows)), len(rows)) for rows in order.split(size)]


class Batch(NamedTuple):
    """The images of a cut that can be read."""

    pixels: Tensor
    """(B, H, W, 3) uint8, or float after mixing, or the tokens of frozen blocks."""
    labels: Tensor
    """(B,) int64; (B, K) after mixing, the probabilities of the classes, or of 0 and 1 for several labels per image."""
    cut: Cut

    def parts(self, count: int) -> Iterator[Self]:
        """The batch in `count` parts of nearly equal size; there are fewer if it has fewer images."""
        for index in torch.arange(len(self.labels)).tensor_split(count):
            if len(index):
                where = slice(int(index[0]), int(index[-1]) + 1)
                rows, places, total = self.cut
                cut = Cut(rows[where], places[where], total)
                yield type(self)(self.pixels[where], self.labels[where], cut)


class ImageSource(Protocol):
    """What a model is trained on or validated by: its images may be decoded only when they are needed."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, also those of images that cannot be read, unless that is known; see `label_tensor`."""
        ...

    def __len__(self) -> int:
        """The number of labels."""
        ...

    def batches(self, cuts: Sequence[Cut]) -> Iterator[Batch]:
        """The images of these batches."""
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
    """A set in memory: pixels (N, H, W, 3) uint8, labels (N,), and the examples they were decoded from."""

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

    def batches(self, cuts: Sequence[Cut]) -> Iterator[Batch]:
        """See `ImageSource.batches`."""
        return (Batch(self.pixels[cut.rows], self.labels[cut.rows], cut) for cut in cuts)

    def settled(self) -> ImageSet:
        """See `ImageSource.settled`."""
        return self


def whole(source: ImageSource) -> Batch:
    """All images of a set in one batch."""
    return next(iter(source.batches(cuts(torch.arange(len(source)), len(source)))))


def label_tensor(examples: Sequence[Example], classes: int) -> Tensor:
    """The labels of images: (N,) int64, or (N, `classes`) of 0 and 1, float32, where each may have several."""
    if not any(isinstance(example.label, tuple) for example in examples):
        return torch.tensor([example.label for example in examples], dtype=torch.int64)
    found = torch.zeros(len(examples), classes)
    for row, example in zip(found, examples, strict=True):
        row[list(numbers(example.label))] = 1
    return found


def class_counts(labels: Tensor, classes: int) -> list[int]:
    """How many images each class has, by labels (N,) or (N, K)."""
    counts = labels.long().sum(0) if labels.ndim == 2 else labels.bincount(minlength=classes)
    return [int(count) for count in counts]


def check_classes(images: ImageSet, classes: Sequence[str], what: str, least: int = 2) -> None:
    """Check that there are at least so many classes, and that each has an image in this split.

    One of several labels per image must lack on some image too.

    Raises:
        DataError: there are fewer, or a class has no image, or all images have a label.
    """
    several = images.labels.ndim == 2
    if len(classes) < least and not several:
        raise DataError(f"the task has {len(classes)} class: classification needs at least two")
    counts = class_counts(images.labels, len(classes))
    always = [name for name, count in zip(classes, counts, strict=True) if several and count == len(images)]
    if always:
        raise DataError(f"every {what} image has the label {', '.join(always)}: add images without it, or remove it")
    empty = [name for label, name in enumerate(classes) if not counts[label]]
    if empty:
        raise DataError(f"no {what} image of class {', '.join(empty)}: add images or remove the class")


def absent_remarks(images: ImageSet, classes: Sequence[str], what: str) -> list[str]:
    """A line if a set has no image of some class, else none."""
    counts = class_counts(images.labels, len(classes))
    absent = [name for label, name in enumerate(classes) if not counts[label]]
    if not absent:
        return []
    lost = "no answer will name it" if what == "training" else "the figures say nothing about it"
    return [f"warning: no {what} image of class {listed(absent)}: {lost}"]


def normalise(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 on the same device, as `Preprocess.normalise`."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (preprocess.mean, preprocess.std))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
