"""Your own images, in a folder or an archive with one folder per class, or named by a table of labels.

    mosa tune --task folder --name flowers --data-dir FOLDER
    mosa tune --task folder --name flowers --data-dir flowers.zip --split 80-10-10
    mosa tune --task folder --name flowers --data-dir FOLDER --labels labels.csv

`<class>/<file>` is split 60-20-20 or as `--split` says; `{train,validation,test}/<class>/<file>` is taken as it is, in
any case and common spelling. Without a validation folder, a fifth of train is used for validation. Without a test
folder there is no test set, and a test folder alone can only be evaluated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mosa_deploy.errors import ConfigError, DataError
from training.recipe import Recipe, with_labels
from training.tasks.archives import WANTED
from training.tasks.base import PERCENTAGES, REAL, Example, Splits, draw_sets, shares, stratified
from training.tasks.classes import WHOLE, Grouping, Labelled, read_labelled_sets
from training.tasks.groups import RULES, by_folder, by_prefix, check_apart, members
from training.tasks.manifest import read_manifest
from training.tasks.sets import set_folders
from training.tasks.source import Source


@dataclass(frozen=True)
class Folder:
    """A task of images in --data-dir, whose classes are folders or stand in a table.

    `labels` are the files of --labels, `group` is the value of --group, and `multi_label` is --multi-label. `least` is
    the smallest number of classes: one is enough where others are there already.
    """

    name = "folder"
    squash = False

    labels: tuple[Path, ...] = ()
    group: str | None = None
    multi_label: bool = False
    least: int = 2

    @property
    def recipe(self) -> Recipe:
        """See `Task.recipe`."""
        return with_labels(REAL) if self.multi_label else REAL

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`."""
        if self.multi_label and not self.labels:
            raise DataError(
                "an image may have several labels, which no folder says: name them in a table, --labels labels.csv"
            )
        if data_dir is None and self.labels:
            data_dir = self.labels[0].parent
        if data_dir is None:
            raise DataError(f"--task folder needs --data-dir: {WANTED}")
        source = Source.open(data_dir)
        if self.labels:
            labelled = read_manifest(source, self.labels, self.group, self.multi_label, self.least)
        else:
            labelled = read_labelled_sets(source.unwrapped(), self._grouping(), self.least)
        return replace(compose(labelled, split, source, self.group), multi_label=self.multi_label)

    def _grouping(self) -> Grouping | None:
        """The rule of --group for class folders.

        Raises:
            ConfigError: it is none, such as the name of a column where there is no table.
        """
        if self.group is None:
            return None
        if self.group not in RULES:
            raise ConfigError(
                f"--group {self.group}: choose {' or '.join(RULES)}, or give --labels FILE with a column of that name"
            )
        return by_folder if self.group == "folder" else by_prefix


def has_sets(data_dir: Path) -> bool:
    """Whether the images in a folder or an archive lie in sets.

    Raises:
        DataError: they cannot be listed.
    """
    return bool(set_folders(Source.open(data_dir).unwrapped()))


def compose(labelled: Labelled, split: str | None, source: Source, group: str | None) -> Splits:
    """Draw the sets that are missing.

    Raises:
        DataError: there are validation images and no training images, a set would lack a class, a group is in two sets,
            or `split` is given for images that have sets of their own.
    """
    classes, sets, found, origin = labelled
    remarks = (*found, *source.remarks())
    groups = describe_groups([example for examples in sets.values() for example in examples], group)
    if sets.keys() == {WHOLE} or (split and sets.keys() == {"train"}):
        (examples,), percentages = sets.values(), split or PERCENTAGES
        train, validation, test = stratified(examples, shares(percentages), classes)
        return Splits(classes, train, validation, test, f"{percentages.replace('-', '/')}, stratified{groups}", remarks)
    if split is not None:
        raise DataError(f"--split {split}: {source.name} has sets of its own ({', '.join(sets)}); leave it out")
    check_apart(sets)
    if sets.keys() == {"test"}:
        return Splits(classes, [], [], sets["test"], f"{origin}: a test set alone", remarks)
    if "train" not in sets:
        raise DataError(
            f"{source.name} has {' and '.join(sets)} and no train: add train/<class>/<file> to tune on, or name a"
            " single set `test` to evaluate a tuned task on it"
        )
    note = origin
    if "validation" not in sets:
        fifth = len(sets["train"]) // 5
        sets |= draw_sets(sets["train"], {"train": len(sets["train"]) - fifth, "validation": fifth}, classes)
        note += f"; validation is a stratified fifth of train{groups}"
    if "test" not in sets:
        note += "; there is no test set"
    return Splits(classes, sets["train"], sets["validation"], sets.get("test", []), note, remarks)


def describe_groups(examples: Sequence[Example], group: str | None) -> str:
    """How many groups there are, for the note; empty if there are none.

    Raises:
        DataError: --group was given, and finds none.
    """
    if all(example.group is None for example in examples):
        if group is not None:
            where = "lies in a folder below its class" if group == "folder" else "has a group"
            raise DataError(f"--group {group}: no image {where}; leave it out")
        return ""
    largest = max(members(examples), key=len)
    if len(largest) == 1 and group is not None:
        raise DataError(
            f"--group {group}: every image would be a group of its own, which keeps none together: leave it out"
        )
    return (
        f", {len(members(examples)):,} groups kept whole (the largest, {largest[0].group!r}, has {len(largest)} images)"
    )
