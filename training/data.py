"""Decode a split once: every image becomes uint8 pixels at the backbone's input size."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import DataError
from training.tasks.base import Example

UNREADABLE_LIMIT = 0.01


@dataclass(frozen=True)
class Images:
    """A decoded split: pixels (N, H, W, 3) uint8, labels (N,) int64, and the examples they were decoded from."""

    pixels: Tensor
    labels: Tensor
    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.labels)


def decode_all(examples: Sequence[Example], preprocess: Preprocess, what: str) -> Images:
    """Read and decode every example. Unreadable ones are skipped, with a line on stderr for each.

    `what` names the split in messages.

    Raises:
        DataError: more than 1 % are unreadable, or there are no images.
    """
    pixels, kept, bad = [], [], []
    for example in tqdm(examples, desc=f"decoding {what}", unit=" images", leave=False, disable=None):
        try:
            pixels.append(preprocess.read(example.read()))
            kept.append(example)
        except (DataError, OSError) as error:
            bad.append(f"{example.name}: {error}")
    count = f"{len(bad)} of {len(examples)} {what} images"
    if len(bad) > UNREADABLE_LIMIT * len(examples):
        raise DataError(f"{count} are unreadable, repair or remove them; first {bad[0]}")
    if bad:
        print(*(f"skipped {fault}" for fault in bad), f"skipped {count} as unreadable", sep="\n", file=sys.stderr)
    if not kept:
        raise DataError(f"there are no {what} images")
    labels = torch.tensor([example.label for example in kept])
    return Images(torch.from_numpy(np.stack(pixels)), labels, kept)


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


def normalise(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 on the same device, as `Preprocess.normalise`."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (preprocess.mean, preprocess.std))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
