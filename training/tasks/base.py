"""The interface of a task: where its images come from, how they are split, and how it is tuned."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from mosa_deploy.backbones.names import DEFAULT
from mosa_deploy.errors import DataError
from training.recipe import Recipe
from training.tasks.groups import draw_groups
from training.tasks.labels import Label, numbers

SPLIT_SEED = 1
"""Seed of the splits. It belongs to the task, so that runs with different seeds use the same images.

It is not 0 because the test sets of seed 0 were used while the presets were chosen.
"""

REAL = Recipe(backbone=DEFAULT, experts=2, scale=0.3, activate="balanced", epochs=30, batch_size=16)
"""For images of one's own on a real backbone: what was best on the development tasks of `benchmarks.evidence`."""

PERCENTAGES = "60-20-20"
"""Default shares of train, validation and test."""


class Example(NamedTuple):
    """One labelled image; `read` returns its encoded bytes."""

    name: str
    read: Callable[[], bytes]
    label: Label
    group: str | None = None
    """Images of one group, such as one patient's, stay in one set; None is a group of one."""


@dataclass(frozen=True)
class Splits:
    """The three sets of a task. Everything is selected on validation; models answer the test set in `evaluate`."""

    classes: tuple[str, ...]
    train: Sequence[Example]
    """Empty, as is `validation`, if there is a test set alone: it can be evaluated, and nothing can be tuned on it."""
    validation: Sequence[Example]
    test: Sequence[Example]
    """Empty if the images come without one."""
    note: str
    """How the split was made, in words."""
    remarks: tuple[str, ...] = ()
    """What else the user should know about the images, such as files that were left out: one line each."""
    multi_label: bool = False
    """Whether an image may have several labels, or none."""
    fixed_classes: bool = False
    """Whether a benchmark fixes the classes: some may then have no training image."""

    def name_of(self, label: Label) -> str:
        """The name of a class, or of several labels: `cat|dog`."""
        return "|".join(self.classes[k] for k in numbers(label))

    def sets(self) -> dict[str, Sequence[Example]]:
        """The three sets by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


class Task(Protocol):
    """A task to tune on. Every task has a file of its own in this package."""

    @property
    def name(self) -> str:
        """The value of --task."""
        ...

    @property
    def squash(self) -> bool:
        """Whether to resize images straight to the input size, without a crop."""
        ...

    @property
    def recipe(self) -> Recipe:
        """The preset; its loss says whether an image may have several labels."""
        ...

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """Find the images and split them; nothing is decoded yet.

        `data_dir` and `split` are the options of the same names.

        Raises:
            DataError: the images are missing, or cannot be split as asked.
        """
        ...


Sizes = tuple[float, float, float] | tuple[int, int, int]
"""Sizes of train, validation and test, as shares or as numbers of images."""


def shares(percentages: str) -> tuple[float, float, float]:
    """Read percentages: `80-10-10` -> (0.8, 0.1, 0.1).

    Raises:
        DataError: not three positive whole numbers that sum to 100.
    """
    numbers = [int(number) for number in percentages.split("-") if re.fullmatch("[1-9][0-9]?", number)]
    if "-".join(map(str, numbers)) != percentages or len(numbers) != 3 or sum(numbers) != 100:
        raise DataError(f"--split {percentages}: give three percentages that sum to 100, such as {PERCENTAGES}")
    return numbers[0] / 100, numbers[1] / 100, numbers[2] / 100


def stratified(
    examples: Sequence[Example], sizes: Sizes, classes: Sequence[str] | None = None
) -> tuple[list[Example], list[Example], list[Example]]:
    """Draw train, validation and test sets with equal class proportions. Errors use the names in `classes`.

    Raises:
        DataError: a set would have no image of some class.
    """
    total = len(examples)
    # In floating point 0.29 * 100 is slightly below 29.
    counts = [math.floor(round(total * size, 6)) if isinstance(size, float) else size for size in sizes]
    if isinstance(sizes[0], float):
        counts[2] = total - counts[0] - counts[1]
    drawn = draw_sets(examples, dict(zip(("train", "validation", "test"), counts, strict=True)), classes)
    return drawn["train"], drawn["validation"], drawn["test"]


def draw_sets(
    examples: Sequence[Example], counts: Mapping[str, int], classes: Sequence[str] | None = None
) -> dict[str, list[Example]]:
    """Draw sets of the given names and sizes with equal class proportions. Images beyond these sizes are not used.

    If images have groups, each group stays in one set, and sizes and proportions are as near as that allows. So they
    are where images have several labels. A rare label may then lack in a set, but not in the first.

    Raises:
        DataError: a set would have no image of some class.
    """
    have = Counter(k for example in examples for k in numbers(example.label))
    what = "images"
    multi_label = any(isinstance(example.label, tuple) for example in examples)
    if multi_label or any(example.group is not None for example in examples):
        drawn = draw_groups(examples, counts, SPLIT_SEED)
        what += "" if all(example.group is None for example in examples) else ", in groups that stay together"
        lacking = _lacking(dict(list(drawn.items())[:1]) if multi_label else drawn, have)
    else:
        drawn, lacking = _draw_singly(examples, counts, have)
    if lacking:
        label, name = lacking[0]
        raise DataError(
            f"class {classes[label] if classes else label!r} has {have[label]} {what}, which leaves none for {name}"
            f" ({counts[name]} of {len(examples)} images): give {name} a larger share, or add images"
        )
    return drawn


Drawn = dict[str, list[Example]]
Lacking = list[tuple[int, str]]
"""(label, set) of every class that a set has no image of."""


def _lacking(drawn: Drawn, have: Counter[int]) -> Lacking:
    present = {name: {k for example in drawn[name] for k in numbers(example.label)} for name in drawn}
    return [(label, name) for name in drawn for label in sorted(have.keys() - present[name])]


def _draw_singly(examples: Sequence[Example], counts: Mapping[str, int], have: Counter[int]) -> tuple[Drawn, Lacking]:
    """Draw images without groups; what is drawn is complete unless a class lacks in a set."""
    # scikit-learn takes a second to import; --help should not wait for it.
    from sklearn.model_selection import train_test_split

    drawn: Drawn = {}
    rest, names = list(examples), list(counts)
    try:
        for place, name in enumerate(names[:-1]):
            drawn[name], rest = train_test_split(
                rest,
                train_size=counts[name],
                test_size=sum(counts[later] for later in names[place + 1 :]),
                stratify=[example.label for example in rest],
                random_state=SPLIT_SEED,
            )
        drawn[names[-1]] = rest
        return drawn, _lacking(drawn, have)
    except ValueError:  # A set is smaller than the number of classes, or a class has one image left.
        left = Counter(k for example in rest for k in numbers(example.label))
        return drawn, [(min(left, key=left.__getitem__), min(names[len(drawn) :], key=counts.__getitem__))]
