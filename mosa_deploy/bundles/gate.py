"""The gate: labelled images on which a new version of a task must not be worse than the served one.

They travel in the `.mosa` file as `gate/<class>/<file>`. A class whose name holds `/` or `%` is percent-encoded, as in
a URL. Where an image may have several labels, its folder lists them, `cat|dog|`, and `|` is that of an image without
labels.
"""

import csv
import hashlib
import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from mosa_deploy.bundles.answers import HasClasses
from mosa_deploy.bundles.image_files import find_images
from mosa_deploy.errors import BundleError, DataError, unknown_name
from mosa_deploy.utils.label_cells import separator_of, split_labels
from mosa_deploy.utils.text import decode_text

PREFIX = "gate/"

LABELS = "labels.csv"
"""The table in a folder of images for a task with several labels per image: columns `file` and `labels`."""

BETWEEN = "|"
"""Ends each of several labels in the name of a folder; it is percent-encoded within a label."""

DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, OSError)
"""What the library raises for a zip that is cut off or damaged, encrypted, or packed by an unknown method."""

LOSSES = 5
"""So many images must a version that is worse by the margin lose, when it gains none, for chance to explain it in less
than 5 % of the cases: the sign test on the images that two versions answer differently gives 0.5 ** 5 = 0.031."""


@dataclass(frozen=True)
class LabelledImage:
    """An encoded image with its class."""

    name: str
    label: str | tuple[str, ...]
    """Its class, or its labels where there may be several."""
    content: bytes

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels; a class is one."""
        return (self.label,) if isinstance(self.label, str) else self.label

    @property
    def member(self) -> str:
        """Its path in a `.mosa` file, as one of a gate."""
        return self.below(PREFIX)

    def below(self, prefix: str) -> str:
        """Its path in a zip, where `prefix` says what such images are for."""
        quoted = [quote(label, safe=" ()[]+&,;=@!$~") for label in self.labels]
        folder = quoted[0] if isinstance(self.label, str) else "".join(f"{label}{BETWEEN}" for label in quoted)
        # An image without labels still lies in a folder.
        return f"{prefix}{folder or BETWEEN}/{self.name}"


def read_label(folder: str) -> str | tuple[str, ...]:
    """What the name of a folder in a zip says of its images."""
    if BETWEEN not in folder:
        return unquote(folder)
    return tuple(unquote(label) for label in folder.split(BETWEEN) if label)


def images_needed(margin: float) -> int:
    """How many images tell two versions apart whose accuracies differ by the margin, see `LOSSES`."""
    return math.ceil(LOSSES / margin - 1e-9)


def is_member(name: str, prefix: str = PREFIX) -> bool:
    """Whether a member of a `.mosa` file is one of these images, or a folder of them that a zip tool noted."""
    return re.fullmatch(rf"{prefix}([^/]+/([^/]+)?)?", name) is not None


def read_members(archive: zipfile.ZipFile, prefix: str = PREFIX) -> tuple[LabelledImage, ...]:
    """The images in an open zip."""
    names = [name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/")]
    split = ((name, *name.removeprefix(prefix).split("/")) for name in names)
    return tuple(LabelledImage(file, read_label(folder), archive.read(name)) for name, folder, file in split)


def write_members(archive: zipfile.ZipFile, images: Iterable[LabelledImage], prefix: str = PREFIX) -> None:
    """Add images to an open zip, with fixed times."""
    for image in images:
        archive.writestr(zipfile.ZipInfo(image.below(prefix)), image.content)


def pack_images(images: Iterable[LabelledImage], prefix: str = PREFIX) -> bytes:
    """The bytes of a zip with the images alone, as the store keeps them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        write_members(archive, images, prefix)
    return buffer.getvalue()


def unpack_images(content: bytes, prefix: str = PREFIX) -> tuple[LabelledImage, ...]:
    """The images in the bytes of such a zip.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return read_members(archive, prefix)
    except DAMAGED_ZIP as error:
        raise ValueError(str(error)) from None


def read_gate(folder: Path, task: HasClasses) -> tuple[LabelledImage, ...]:
    """The images in a folder with one subfolder per class, whose images may lie deeper.

    For a task with several labels per image the folder may hold `labels.csv` instead, see `LABELS`.

    Raises:
        DataError: there are none, or a label is no class of the task.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with a subfolder of images for each class")
    if task.multi_label and (folder / LABELS).is_file():
        return _read_listed(folder, task.classes)
    found: list[LabelledImage] = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))):
        if place.name not in task.classes:
            raise DataError(f"{folder}: {unknown_name('class', place.name, task.classes)}")
        files, _ = find_images([place])
        found += [LabelledImage(f"{i:05}{file.suffix}", place.name, file.read_bytes()) for i, file in enumerate(files)]
    if not found:
        table = f", or list them in {LABELS}, with columns file and labels" if task.multi_label else ""
        raise DataError(f"{folder} has no subfolder of images: name the subfolders after the classes{table}")
    return tuple(found)


def _read_listed(folder: Path, classes: Sequence[str]) -> tuple[LabelledImage, ...]:
    """The images that a table in their folder lists, each with its labels.

    Raises:
        DataError: the table lacks a column or a row, names a file that is not there, or an unknown label.
    """
    path = folder / LABELS
    rows = list(csv.DictReader(io.StringIO(decode_text(path.read_bytes())), skipinitialspace=True))
    if not rows or not {"file", "labels"} <= rows[0].keys():
        raise DataError(f"{path}: give it the columns file and labels, and a row for each image")
    cells = [(row["labels"] or "").strip() for row in rows]
    separator = separator_of(cells)
    found = []
    for i, (row, cell) in enumerate(zip(rows, cells, strict=True)):
        try:
            labels, content = split_labels(cell, separator), (folder / (row["file"] or "")).read_bytes()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}:{i + 2}: {getattr(error, 'strerror', None) or error}: mend the row") from None
        odd = next((label for label in labels if label not in classes), None)
        if odd is not None:
            raise DataError(f"{path}:{i + 2}: {unknown_name('class', odd, classes)}")
        found.append(LabelledImage(f"{i:05}{Path(row['file']).suffix}", labels, content))
    return tuple(found)


def label_fault(image: LabelledImage, task: HasClasses) -> str | None:
    """Why an image cannot be one of a task's, by its labels; None if it can."""
    odd = next((label for label in image.labels if label not in task.classes), None)
    if odd is not None:
        return unknown_name("class", odd, task.classes)
    if len(image.labels) != 1 and not task.multi_label:
        return f"{image.name} has {len(image.labels)} labels, and the task answers with one class per image"
    return None


def check_gate(images: Sequence[LabelledImage], task: HasClasses) -> tuple[LabelledImage, ...]:
    """The images, each content once.

    Raises:
        BundleError: a label is no class, one image has two classes, or several labels in a task of one class.
    """
    first: dict[str, LabelledImage] = {}
    for image in images:
        if fault := label_fault(image, task):
            raise BundleError(f"gate: {fault}")
        before = first.setdefault(hashlib.sha256(image.content).hexdigest(), image)
        if {*before.labels} != {*image.labels}:
            raise BundleError(f"gate: {before.member} and {image.member} are one image: give it one label")
    return tuple(first.values())
