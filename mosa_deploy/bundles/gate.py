"""The gate: labelled images on which a new version of a task must not be worse than the served one.

They travel in the `.mosa` file as `gate/<class>/<file>`. A class whose name holds `/` or `%` is percent-encoded, as in
a URL.
"""

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

from mosa_deploy.bundles.image_files import find_images
from mosa_deploy.errors import BundleError, DataError, unknown_name

PREFIX = "gate/"

DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, OSError)
"""What the library raises for a zip that is cut off or damaged, encrypted, or packed by an unknown method."""

LOSSES = 5
"""So many images must a version that is worse by the margin lose, when it gains none, for chance to explain it in less
than 5 % of the cases: the sign test on the images that two versions answer differently gives 0.5 ** 5 = 0.031."""


@dataclass(frozen=True)
class LabelledImage:
    """An encoded image with its class."""

    name: str
    label: str
    content: bytes

    @property
    def member(self) -> str:
        """Its path in a `.mosa` file, as one of a gate."""
        return self.below(PREFIX)

    def below(self, prefix: str) -> str:
        """Its path in a zip, where `prefix` says what such images are for."""
        return f"{prefix}{quote(self.label, safe=' ()[]+&,;=@!$~')}/{self.name}"


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
    return tuple(LabelledImage(file, unquote(label), archive.read(name)) for name, label, file in split)


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


def read_gate(folder: Path, classes: Sequence[str]) -> tuple[LabelledImage, ...]:
    """The images in a folder with one subfolder per class, whose images may lie deeper.

    Raises:
        DataError: there are none, or a subfolder is no class of the bundle.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with a subfolder of images for each class")
    found: list[LabelledImage] = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))):
        if place.name not in classes:
            raise DataError(f"{folder}: {unknown_name('class', place.name, classes)}")
        files, _ = find_images([place])
        found += [LabelledImage(f"{i:05}{file.suffix}", place.name, file.read_bytes()) for i, file in enumerate(files)]
    if not found:
        raise DataError(f"{folder} has no subfolder of images: name the subfolders after the classes")
    return tuple(found)


def check_gate(images: Sequence[LabelledImage], classes: Sequence[str]) -> tuple[LabelledImage, ...]:
    """The images, each content once.

    Raises:
        BundleError: a label is no class, or one image has two labels.
    """
    labels: dict[str, LabelledImage] = {}
    for image in images:
        if image.label not in classes:
            raise BundleError(f"gate: {unknown_name('class', image.label, classes)}")
        first = labels.setdefault(hashlib.sha256(image.content).hexdigest(), image)
        if first.label != image.label:
            raise BundleError(f"gate: {first.member} and {image.member} are one image: give it one label")
    return tuple(labels.values())
