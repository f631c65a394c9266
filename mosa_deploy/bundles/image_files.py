"""Which files of a folder or an archive are images, and what becomes of the others: they are counted, never dropped."""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

from mosa_deploy.bundles import heif
from mosa_deploy.bundles.decode import FORMATS
from mosa_deploy.bundles.leftovers import leftover, shown_name
from mosa_deploy.errors import DataError

Parts = tuple[str, ...]
"""A path below the folder or archive, part by part."""

KINDS = 12
"""The largest number of kinds of files that a line lists."""

NO_SUFFIX = "without a suffix"


def image_suffixes() -> set[str]:
    """The suffixes of images that can be decoded here, e.g. `.jpg`."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    return known | heif.SUFFIXES if heif.installed() else known - heif.SUFFIXES


def is_image(content: IO[bytes]) -> bool:
    """Whether a file without a proper suffix is an image, by its first bytes.

    TGA is not tried: it begins with no mark of its own, and other files look like it.
    """
    if heif.is_heif(content.read(256)):
        return heif.installed()
    content.seek(0)
    try:
        with Image.open(content, formats=[name for name in FORMATS if name != "TGA"]):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # On other bytes Pillow also raises struct.error, TypeError and RuntimeError.
        return False


@dataclass
class Listing:
    """What lies in a folder or an archive."""

    folders: set[Parts] = field(default_factory=set)
    images: set[Parts] = field(default_factory=set)
    others: dict[Parts, str] = field(default_factory=dict)
    """Files that are no images, and of which kind: mostly the suffix."""
    leftovers: set[Parts] = field(default_factory=set)
    """Files and whole folders that a system or a tool left behind."""
    suffixes: set[str] = field(default_factory=image_suffixes)

    def skip(self, parts: Parts) -> bool:
        """Whether a path is a leftover or lies in one, which is then noted."""
        found = next((parts[: i + 1] for i, part in enumerate(parts) if leftover(part)), None)
        if found:
            self.leftovers.add(found)
        return bool(found)

    def add(self, parts: Parts, opened: Callable[[], IO[bytes]]) -> bool:
        """Sort a file by its name, or by its first bytes if it has no suffix; returns whether it is an image."""
        suffix = Path(parts[-1].strip()).suffix.lower()
        proper = re.fullmatch(r"\.[a-z][a-z0-9]{0,9}", suffix)
        if proper and suffix not in self.suffixes:
            self.others[parts] = suffix
        elif proper or self._by_content(opened):
            self.images.add(parts)
        else:
            self.others[parts] = NO_SUFFIX
        return parts in self.images

    def _by_content(self, opened: Callable[[], IO[bytes]]) -> bool:
        with opened() as content:
            return is_image(content)


def left_out(others: Iterable[str], leftovers: Iterable[Parts]) -> str | None:
    """The line that counts files by kind which are not read; None if there are none."""
    kinds, rest = Counter(others), Counter(shown_name(parts[-1]) for parts in leftovers)
    texts = []
    if kinds:
        heic = heif.SUFFIXES & kinds.keys()
        hint = f" ({heif.INSTALL} to read {', '.join(sorted(heic))})" if heic else ""
        texts.append(f"left out as no images: {_counted(kinds)}{hint}")
    if rest:
        texts.append(f"skipped as leftovers of systems and tools: {_counted(rest)}")
    return "; ".join(texts) or None


def _counted(kinds: Counter[str]) -> str:
    listed = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))[:KINDS]
    shown = [f"{count:,} {kind}" for kind, count in listed]
    more = kinds.total() - sum(count for _, count in listed)
    return ", ".join([*shown, f"{more:,} of other kinds"] if more else shown)


def list_folder(root: Path) -> Listing:
    """List a folder; links are followed, but not to a folder above.

    Raises:
        DataError: a folder cannot be listed.
    """
    listing = Listing()
    todo: list[tuple[Parts, frozenset[tuple[int, int]]]] = [((), frozenset())]
    while todo:
        parent, above = todo.pop()
        folder = root.joinpath(*parent)
        try:
            with os.scandir(folder) as found:
                entries = list(found)
            status = folder.stat()
        except OSError as error:
            raise DataError(f"{folder} cannot be listed ({error.strerror}): make it readable, or remove it") from None
        above |= {(status.st_dev, status.st_ino)}
        for entry in entries:
            parts = (*parent, entry.name)
            if listing.skip(parts):
                continue
            kind = _kind(entry, above)
            if kind == "folder":
                listing.folders.add(parts)
                todo.append((parts, above))
            elif kind == "file":
                listing.add(parts, partial(_opened, Path(entry.path)))
            else:
                listing.others[parts] = kind
    return listing


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _kind(entry: os.DirEntry[str], above: frozenset[tuple[int, int]]) -> str:
    try:
        status = entry.stat()
    except OSError:
        return "broken link(s)" if entry.is_symlink() else "unreadable file(s)"
    if stat.S_ISDIR(status.st_mode):
        return "link(s) to a folder above" if (status.st_dev, status.st_ino) in above else "folder"
    return "file" if stat.S_ISREG(status.st_mode) else "pipe(s) or device(s)"


class Found(NamedTuple):
    """Images, and the line that counts the files beside them."""

    images: list[Path]
    left_out: str | None


def find_images(places: Sequence[Path]) -> Found:
    """The files that are named, and the images in the folders that are named, in the order of their paths.

    Raises:
        DataError: a place does not exist, a folder cannot be listed, or there is no image in any.
    """
    images: list[Path] = []
    others: list[str] = []
    leftovers: list[Parts] = []
    for place in places:
        if not place.exists():
            raise DataError(f"{place}: no such file or folder; give images, or folders of images")
        if place.is_dir():
            listing = list_folder(place)
            images += sorted(place.joinpath(*parts) for parts in listing.images)
            others += listing.others.values()
            leftovers += listing.leftovers
        else:
            images.append(place)
    line = left_out(others, leftovers)
    if not images:
        beside = f" ({line})" if line else ""
        raise DataError(f"no images in {', '.join(map(str, places))}{beside}: give images, or folders of images")
    return Found(list(dict.fromkeys(images)), line)
