"""Few images to tune on: a part of a task's training images, drawn by a seed of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.utils.seeds import derive
from training.tasks.base import Example, Splits


@dataclass(frozen=True)
class Subset:
    """Which part of the training images is used: all, `shots` of each class, or a `fraction` of each class.

    The draw has a seed of its own, so that runs of several seeds can use the same images, or each its own.

    Raises:
        ConfigError: both are given, or one is out of range.
    """

    shots: int | None = None
    fraction: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = []
        if self.shots is not None and self.fraction is not None:
            faults.append("--shots and --fraction exclude each other: drop one")
        if self.shots is not None and self.shots < 1:
            faults.append(f"--shots {self.shots}: at least 1")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            faults.append(f"--fraction {self.fraction:g}: above 0, at most 1")
        if faults:
            raise ConfigError("; ".join(faults))

    def of(self, splits: Splits) -> Splits:
        """The same splits with fewer training images; validation and test stay as they are.

        Raises:
            DataError: a class has fewer images than `shots`, or an image may be of several classes.
        """
        if self.shots is None and self.fraction is None:
            return splits
        if splits.multi_label:
            return self._of_labels(splits)
        drawn: list[Example] = []
        for label, name in enumerate(splits.classes):
            drawn += self._draw(name, label, [each for each in splits.train if each.label == label])
        what = f"{self.shots} images" if self.shots is not None else f"{self.fraction:.4g} of the images"
        return replace(splits, train=drawn, note=f"{splits.note}; {what} of each class to tune on, draw {self.seed}")

    def _of_labels(self, splits: Splits) -> Splits:
        """A part of images that may have several labels."""
        if self.shots is not None:
            raise DataError("--shots draws images of each class, and here one image may have several: give --fraction")
        count = math.ceil(round((self.fraction or 1) * len(splits.train), 6))
        drawn = Random(derive(self.seed, "subset")).sample(list(splits.train), count)
        note = f"{splits.note}; {self.fraction:.4g} of the images to tune on, draw {self.seed}"
        return replace(splits, train=drawn, note=note)

    def _draw(self, name: str, label: int, examples: Sequence[Example]) -> list[Example]:
        if self.shots is not None and self.shots > len(examples):
            raise DataError(
                f"--shots {self.shots}: class {name!r} has {len(examples)} training images; give fewer shots"
            )
        count = self.shots or math.ceil(round((self.fraction or 1) * len(examples), 6))
        return Random(derive(self.seed, "subset", label)).sample(examples, count)
