"""Folders and tables for tests of splits, and what came out of them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mosa_deploy.errors import DataError
from tests.support.images import numbered, write_images
from training.tasks.base import Splits
from training.tasks.folder import Folder

ROWS = [(f"{i}.jpg", "ash" if i % 2 else "oak") for i in range(10)]
"""The rows of a table of ten images: the even ones are oaks."""


def two_classes(folder: Path, *more: str) -> Path:
    """Five images of each of two classes, and files of other names."""
    return write_images(folder, *numbered("oak/{}.jpg", 5), *numbered("ash/{}.jpg", 5), *more)


def write_table(path: Path, header: str, rows: Sequence[Sequence[str]], delimiter: str = ",", end: str = "\n") -> Path:
    """Write a table; the header is given with commas."""
    lines = [header.replace(",", delimiter), *(delimiter.join(row) for row in rows)]
    path.write_bytes(end.join([*lines, ""]).encode())
    return path


def listed(images: Path, *tables: Path, group: str | None = None, multi_label: bool = False) -> Splits:
    """The splits of a folder by tables of labels."""
    return Folder(labels=tables, group=group, multi_label=multi_label).splits(images, None)


def sizes(splits: Splits) -> list[int]:
    """The numbers of images of train, validation and test."""
    return [len(part) for part in (splits.train, splits.validation, splits.test)]


def names(splits: Splits) -> set[str]:
    """The names of all images."""
    return {*labels(splits)}


def labels(splits: Splits) -> dict[str, str]:
    """The name of each image -> its class, or its labels with `|` between them."""
    parts = (splits.train, splits.validation, splits.test)
    return {example.name: splits.name_of(example.label) for part in parts for example in part}


def refusal(images: Path, *tables: Path, group: str | None = None, multi_label: bool = False) -> str:
    """The line in which the images are refused."""
    with pytest.raises(DataError) as caught:
        listed(images, *tables, group=group, multi_label=multi_label)
    assert "\n" not in str(caught.value)
    return str(caught.value)
