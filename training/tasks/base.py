"""What a task is: where its images come from, how they are split, and how it is tuned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from sklearn.model_selection import train_test_split

from mosa_deploy.errors import DataError
from training.config import Recipe

SPLIT_SEED = 0
"""Splits belong to the task, not to the run: every seed of a run sees the same images."""


class Example(NamedTuple):
    """One labelled image, read when it is needed."""

    name: str
    read: Callable[[], bytes]
    label: int


@dataclass(frozen=True)
class Splits:
    """The three sets of a task. Selection is by validation; the test set is for `training.evaluate` alone."""

    classes: tuple[str, ...]
    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    note: str
    """How the split was made, in words."""


class Task(Protocol):
    """One file a task."""

    name: str
    recipe: Recipe
    squash: bool
    """Resize straight to the input size, without a crop."""

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """Find the data and split it; nothing is decoded yet.

        Raises:
            DataError: the data are missing, or cannot be split as asked.
        """
        ...


def stratified(
    examples: Sequence[Example], sizes: tuple[float, float, float] | tuple[int, int, int]
) -> tuple[list[Example], list[Example], list[Example]]:
    """Draw train, validation and test of the given sizes (shares or counts), each class in its proportion.

    Raises:
        DataError: a class has too few images to be in all three.
    """
    labels = [example.label for example in examples]
    share = sizes[1] / (sizes[1] + sizes[2]) if isinstance(sizes[0], float) else sizes[1]
    try:
        train, rest = train_test_split(
            examples, train_size=sizes[0], test_size=sizes[1] + sizes[2], stratify=labels, random_state=SPLIT_SEED
        )
        rest_labels = [example.label for example in rest]
        validation, test = train_test_split(rest, train_size=share, stratify=rest_labels, random_state=SPLIT_SEED)
    except ValueError as error:
        raise DataError(
            f"{len(examples)} images cannot be split in three ({error}): add images of each class"
        ) from None
    return train, validation, test
