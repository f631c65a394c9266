"""Find the user's images in a folder or a tar archive.

    <class>/<file>   or   {train,validation,test}/<class>/<file>

Either layout may lie below further common folders. An archive is not unpacked: its images are kept in memory, encoded.
"""

import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from mosa_deploy.bundles.image_files import image_suffixes
from mosa_deploy.errors import DataError
from training.tasks.base import Example

SETS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
"""Set -> the names that its folder may have."""

DEPTH = 6
"""Deeper folders are ignored, so that a link to a parent folder does not cause an endless loop."""

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """The folders and images below one folder, by the parts of their relative paths."""

    name: str
    folders: frozenset[Parts]
    images: Mapping[Parts, Callable[[], bytes]]

    @classmethod
    def open(cls, path: Path) -> "Source":
        """List a folder or a tar archive, compressed or not; hidden files are left out.

        Raises:
            DataError: there are no images, the archive is damaged, or it has a link, a device or a path outside.
        """
        wanted = "give a folder or a tar archive with one folder per class"
        try:
            if not path.exists():
                raise DataError(f"--data-dir {path}: no such folder; {wanted}")
            folders, images = list_folder(path) if path.is_dir() else list_archive(path)
        except (tarfile.TarError, EOFError, OSError, LZMAError, zlib.error) as error:
            fault = f"cannot be read to its end ({type(error).__name__})"
            raise DataError(f"--data-dir {path} {fault}: {wanted}, complete and readable") from None
        if not images:
            raise DataError(f"--data-dir {path} holds no images: {wanted}")
        return cls(str(path), frozenset(folders), images)

    def tops(self) -> list[str]:
        """The names of the top folders, sorted."""
        return sorted(parts[0] for parts in self.folders if len(parts) == 1)

    def below(self, top: str) -> "Source":
        """The content of a top folder."""
        folders = frozenset(parts[1:] for parts in self.folders if parts[0] == top and len(parts) > 1)
        return Source(f"{self.name}/{top}", folders, {p[1:]: read for p, read in self.images.items() if p[0] == top})

    def unwrapped(self) -> "Source":
        """The source without common top folders that hold only folders. Folders such as `train` are kept."""
        tops = self.tops()
        if len(tops) != 1 or any(tops[0] in names for names in SETS.values()):
            return self
        inner = self.below(tops[0])
        return inner.unwrapped() if inner.folders and not inner.loose() else self

    def loose(self) -> int:
        """The number of images at the top, outside any folder."""
        return sum(len(parts) == 1 for parts in self.images)

    def sets(self) -> dict[str, "Source"]:
        """The sets among train, validation and test that have a folder; empty if the top folders are classes.

        Raises:
            DataError: two folders are the same set, such as `val` and `valid`.
        """
        named = {spelling: name for name, spellings in SETS.items() for spelling in spellings}
        tops = set(self.tops())
        nested = {parts[0] for parts in self.folders if len(parts) > 1}
        found: dict[str, Source] = {}
        for top, name in named.items():
            # A folder `train` that holds images and lies beside other folders is a class, e.g. of railway trains.
            if top in nested or (top in tops and tops <= named.keys()):
                if name in found:
                    raise DataError(f"{found[name].name} and {self.name}/{top} both are {name}: keep one")
                found[name] = self.below(top)
        return found


def list_folder(root: Path) -> tuple[set[Parts], dict[Parts, Callable[[], bytes]]]:
    """The folders and images below `root`; links are followed."""
    suffixes = image_suffixes()
    folders: set[Parts] = set()
    images: dict[Parts, Callable[[], bytes]] = {}
    todo: list[Parts] = [()]
    while todo:
        parent = todo.pop()
        with os.scandir(root.joinpath(*parent)) as entries:
            for entry in entries:
                parts = (*parent, entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.add(parts)
                    todo += [parts] if len(parts) < DEPTH else []
                elif Path(entry.name).suffix.lower() in suffixes:
                    images[parts] = root.joinpath(*parts).read_bytes
    return folders, images


def list_archive(path: Path) -> tuple[set[Parts], dict[Parts, Callable[[], bytes]]]:
    """The folders and images in a tar archive.

    Raises:
        DataError: a member is neither file nor folder, or lies outside.
        ReadError: the archive is damaged. Damaged compression raises that library's errors.
    """
    suffixes = image_suffixes()
    folders: set[Parts] = set()
    images: dict[Parts, Callable[[], bytes]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            parts = member_parts(path, member)
            if any(part.startswith(".") for part in parts):
                continue
            folders.update(parts[:depth] for depth in range(1, len(parts) + member.isdir()))
            wanted = member.isfile() and Path(member.name).suffix.lower() in suffixes
            content = archive.extractfile(member) if wanted else None
            if content is not None:
                images[parts] = partial(bytes, content.read())
        check_end(archive)
    return folders, images


def member_parts(path: Path, member: tarfile.TarInfo) -> Parts:
    """The parts of a member's path.

    Raises:
        DataError: the member is neither file nor folder, or lies outside the archive.
    """
    pure = PurePosixPath(member.name)
    if pure.is_absolute() or ".." in pure.parts:
        raise DataError(f"--data-dir {path}: member {member.name!r} lies outside the archive; pack it again")
    if not (member.isfile() or member.isdir()):
        raise DataError(f"--data-dir {path}: member {member.name!r} is a link or a device; pack it again without it")
    return pure.parts


def check_end(archive: tarfile.TarFile) -> None:
    """Check that the archive ends with a block of zeros; tarfile does not notice a cut between two members.

    Raises:
        ReadError: the archive was cut off.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("unexpected end of data")
    while archive.fileobj.read(1 << 20):  # A compressed file verifies its checksum only at its end.
        pass


def read_classes(source: Source) -> tuple[tuple[str, ...], list[Example]]:
    """Read `<class>/<file>`: the sorted class names, and the images sorted by path.

    Raises:
        DataError: there are fewer than two classes, names that differ only by case, a class without images, or images
            at another level.
    """
    classes = tuple(source.tops())
    if not classes and source.images:
        raise DataError(
            f"{source.name} holds {source.loose()} images and no class folder: put each class into a folder of its name"
        )
    if len(classes) < 2:
        raise DataError(f"{source.name} holds {len(classes)} class folder(s): a task needs at least two")
    check_names(classes, source.name)
    deep = sorted(parts for parts in source.images if len(parts) > 2)
    if deep:
        raise DataError(f"{source.name} holds {'/'.join(deep[0])!r}, deeper than <class>/<file>: move it up")
    counts = Counter(parts[0] for parts in source.images if len(parts) == 2)
    empty = [name for name in classes if not counts[name]]
    if empty:
        raise DataError(f"class {empty[0]!r} in {source.name} is empty: add images or remove the folder")
    labels = {name: label for label, name in enumerate(classes)}
    images = sorted((parts, read) for parts, read in source.images.items() if len(parts) == 2)
    return classes, [Example("/".join(parts), read, labels[parts[0]]) for parts, read in images]


def read_labelled_sets(source: Source) -> tuple[tuple[str, ...], dict[str, list[Example]]]:
    """The classes, and the examples of train, test and, if there is one, validation.

    Raises:
        DataError: train or test is missing, the sets have different classes, or `read_classes` finds a fault.
    """
    sets = source.sets()
    for name in ("train", "test"):
        if name not in sets:
            alone = "class folders without such a level are split by --task folder"
            raise DataError(f"{source.name} has no {name}/<class>/<file>: add it ({alone})")
    read = {name: read_classes(inside) for name, inside in sets.items()}
    classes = read["train"][0]
    for name, (others, _) in read.items():
        odd = sorted(set(others) ^ set(classes))
        if odd:
            where = f"{sets[name].name} has other classes than {sets['train'].name}"
            raise DataError(f"{where} ({odd[0]!r} is in one of them alone): make them the same")
    return classes, {name: examples for name, (_, examples) in read.items()}


def check_names(classes: Sequence[str], where: str) -> None:
    """Check that names differ by more than case or Unicode form (NFC), so that no folder overwrites another.

    Raises:
        DataError: two names do not.
    """
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(normalize("NFC", name).casefold(), name)
        if other != name:
            pair = f"{other!r} and {name!r}" if normalize("NFC", other) != normalize("NFC", name) else ""
            pair = pair or f"{other!a} and {name!a}"
            raise DataError(f"classes {pair} in {where} differ by case or Unicode form alone: rename or join them")
