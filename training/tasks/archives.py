"""List the images in a tar or zip archive. It is never unpacked: its images stay in memory, still encoded."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from mosa_deploy.bundles.image_files import Listing, Parts, is_image
from mosa_deploy.errors import DataError
from mosa_deploy.utils.tar import DAMAGED_TAR, check_end

WANTED = "give a folder, or a tar or zip archive, with one folder per class"

DAMAGED = (*DAMAGED_TAR, zipfile.BadZipFile, NotImplementedError)  # zipfile raises the last for an unknown compression
"""What the libraries raise for an archive that is cut off or damaged, or packed by an unknown method."""

ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
"""First bytes of a zip archive: usual, empty, and in several parts."""

FOREIGN = {
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
}
"""First bytes -> archives that are not read."""

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".parquet")

ENCRYPTED = 1
"""The bit of a zip member's flags."""
UTF_8 = 1 << 11


class Member(NamedTuple):
    """One entry of an archive."""

    name: str
    folder: bool
    regular: bool
    """Whether it is a folder or a plain file: no link and no device."""
    read: Callable[[], bytes]
    guessed: bool = False
    """Whether the name is read by code page 437 for want of a better one."""


class Archive(NamedTuple):
    """What lies in an archive."""

    listing: Listing
    contents: dict[Parts, bytes]
    """The bytes of its images."""
    guessed: str | None
    """A name that is read by code page 437 for want of a better one."""


def list_archive(path: Path) -> Archive:
    """What lies in an archive of any suffix.

    Raises:
        DataError: the archive is damaged, encrypted or of another kind, a member is a link or lies outside, or two
            members have one name.
    """
    listing, contents, guessed = Listing(), dict[Parts, bytes](), None
    if path.suffix.lower() in TABLES:
        raise DataError(f"--data-dir {path} is a table: give it with --labels, and the folder of its images here")
    with path.open("rb") as handle:
        head = handle.read(8)
        handle.seek(0)
        kind = next((kind for mark, kind in FOREIGN.items() if head.startswith(mark)), None)
        kind = kind or ("an image, not a folder" if is_image(handle) else None)
    if kind:
        raise DataError(f"--data-dir {path} is {kind}, which is not read: {WANTED}")
    for member in zip_members(path) if head.startswith(ZIP) else tar_members(path):
        parts = member_parts(path, member)
        if not parts or listing.skip(parts):
            continue
        listing.folders.update(parts[:depth] for depth in range(1, len(parts) + member.folder))
        guessed = guessed or (member.name if member.guessed else None)
        if not member.folder:
            content = member.read()
            if contents.get(parts, content) != content:
                raise DataError(f"--data-dir {path} holds two files {member.name!r} that differ: pack it again")
            if parts not in contents and listing.add(parts, partial(io.BytesIO, content)):
                contents[parts] = content
    return Archive(listing, contents, guessed)


def member_parts(path: Path, member: Member) -> Parts:
    """The parts of a member's path.

    Raises:
        DataError: the member is neither file nor folder, or lies outside the archive.
    """
    pure = PurePosixPath(member.name)
    if pure.is_absolute() or PureWindowsPath(member.name).drive or ".." in pure.parts:
        raise DataError(f"--data-dir {path}: member {member.name!r} lies outside the archive; pack it again")
    if not member.regular:
        raise DataError(f"--data-dir {path}: member {member.name!r} is a link or a device; pack it again without it")
    return pure.parts


def tar_members(path: Path) -> Iterator[Member]:
    """The members of a tar archive, compressed or not.

    Raises:
        ReadError: the archive is damaged. Damaged compression raises that library's errors.
    """
    with tarfile.open(path) as archive:

        def read(member: tarfile.TarInfo) -> bytes:
            content = archive.extractfile(member)
            return content.read() if content else b""

        for member in archive:
            regular = member.isfile() or member.isdir()
            yield Member(member.name, member.isdir(), regular, partial(read, member))
        check_end(archive)


def zip_members(path: Path) -> Iterator[Member]:
    """The members of a zip archive.

    Raises:
        DataError: a member is encrypted.
        BadZipFile: the archive is damaged. Damaged compression raises that library's errors.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.flag_bits & ENCRYPTED:
                raise DataError(f"--data-dir {path} is encrypted: unpack it with its password, and give the folder")
            kind = stat.S_IFMT(member.external_attr >> 16)
            regular = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            name, guessed = zip_name(member)
            yield Member(name, name.endswith("/"), regular, partial(archive.read, member), guessed)


def zip_name(member: zipfile.ZipInfo) -> tuple[str, bool]:
    """(a member's path with slashes, whether its code page is guessed).

    Names that are not marked as UTF-8 are in the code page 437 by the format's rules, but many tools write UTF-8, and
    others the code page of their country.
    """
    name = member.orig_filename.partition("\0")[0].replace("\\", "/")
    if member.flag_bits & UTF_8 or name.isascii():
        return name, False
    try:
        return name.encode("cp437").decode("utf-8"), False
    except ValueError:
        return name, True
