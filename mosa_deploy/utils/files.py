"""Files are written aside, flushed and renamed: a reader sees the old one or the new one, never half of one."""

import csv
import errno
import hashlib
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mosa_deploy.errors import DataError, WriteError

FilePath = str | os.PathLike[str]

Content = bytes | bytearray | memoryview | FilePath
"""The bytes of a file, or its path. Text is always a path: its characters are never taken for a file's bytes."""

NAMED = 200
"""The most characters of a path that an error repeats; what is longer is no path, but base64 perhaps."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a spent quota, a file above the allowed size."""


@contextmanager
def with_room(path: Path) -> Iterator[None]:
    """Raises WriteError if the disk has no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise WriteError(
            f"{path} cannot be written: {error.strerror}; what was there is kept: free some space, or write elsewhere"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to. On success it is renamed to `path`; on any error it is removed, and `path` stays.

    Raises:
        WriteError: the disk has no room, or `path` is a folder.
    """
    if path.is_dir():
        raise WriteError(f"{path} is a folder: name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with with_room(path):
            yield aside
            with aside.open("rb") as handle:
                os.fsync(handle.fileno())
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder: all that it held is replaced at once, or everything stays.

    Raises:
        WriteError: the disk has no room.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        with with_room(folder):
            yield aside
            for path in aside.rglob("*"):
                if path.is_file():
                    with path.open("rb") as handle:
                        os.fsync(handle.fileno())
        old = aside.with_suffix(".old")
        if folder.exists():
            folder.replace(old)
        aside.chmod(0o755)
        try:
            aside.replace(folder)
        except OSError:
            if old.exists():
                old.replace(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the content of `path`; raises WriteError if the disk has no room."""
    with replacing(path) as aside:
        aside.write_bytes(content)


def create_bytes(path: Path, content: bytes) -> None:
    """Write a file that must not be there yet: of two processes one succeeds, and no reader sees half of it.

    Raises:
        FileExistsError: it is there.
        WriteError: the disk has no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with with_room(path):
            with aside.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Replace the content of `path`, as UTF-8; file names that are not keep their bytes.

    Raises:
        WriteError: the disk has no room.
    """
    write_bytes(path, content.encode(errors="surrogateescape"))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Replace the content of `path` by a table: a line of names, and one line per row; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_content(content: Content) -> bytes:
    """The bytes, read from the file if a path is given.

    Raises:
        DataError: the file cannot be read, or what is given is neither bytes nor a path.
    """
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    if not isinstance(content, str | os.PathLike):
        raise DataError(f"a {type(content).__name__} is neither a file's bytes nor its path: give one of them")
    path = os.fsdecode(content)
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        shown = path if len(path) <= NAMED and path.isprintable() else f"{path[:40]!r}... ({len(path)} characters)"
        reason = getattr(error, "strerror", None) or "no path of a file"
        way_out = "; give a path, or the bytes themselves" if shown != path or ":" in path[:8] else ""
        raise DataError(f"{shown}: {reason}{way_out}") from None


def printable(name: FilePath) -> str:
    """A file's name, or a text with one, that can be printed and written: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
