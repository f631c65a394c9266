"""The images of `mosa score`, cut into shards: each is read by itself and in order, and becomes one file of answers.

A shard is a tar file, a Parquet file, or a fixed number of the files of a folder. Its images are named below the place
that the user gave: `below/c.png`, `train-000.tar/a.jpg` or `train-000.parquet#12`, the row from 0.
"""

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import pyarrow
import pyarrow.parquet

from mosa_deploy.bundles.image_files import Listing, Parts, left_out, list_folder
from mosa_deploy.errors import ConfigError, DataError, listed
from mosa_deploy.utils.files import printable
from mosa_deploy.utils.tar import DAMAGED_TAR, check_end
from serving.score_decode import Encoded

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET = ".parquet"

BUFFER = 1 << 20
"""Bytes of a Parquet column that are read at once; a whole group of rows may be larger than the memory."""
ROWS = 16
"""Rows of a Parquet file that are decoded at once."""

WANTED = "give a folder of images, or tar or Parquet files by their name, their folder or a pattern"


@dataclass
class LeftOut:
    """Counts files that are no images."""

    kinds: Counter[str] = field(default_factory=Counter)
    leftovers: list[Parts] = field(default_factory=list)

    def add(self, listing: Listing) -> None:
        """Count what lies beside the images of a folder or an archive."""
        self.kinds.update(listing.others.values())
        self.leftovers += listing.leftovers

    def said(self) -> list[Any]:
        """The same as JSON, for another process."""
        return [self.kinds, self.leftovers]

    def add_said(self, said: Sequence[Any]) -> None:
        """Add what another process has counted."""
        kinds, leftovers = said
        self.kinds.update(kinds)
        self.leftovers += map(tuple, leftovers)

    @property
    def line(self) -> str | None:
        """What is said of them; None if there are none."""
        return left_out(self.kinds.elements(), self.leftovers)


class Shard(Protocol):
    """A part of the images."""

    @property
    def root(self) -> Path:
        """The folder that it lies in, or below."""
        ...

    @property
    def file(self) -> str:
        """Where its answers are written, below the folder of a run."""
        ...

    @property
    def count(self) -> int | None:
        """The number of its images, if that is known before it is read."""
        ...

    def fingerprint(self) -> str:
        """Tells whether it is still what was scored."""
        ...

    def images(self, left: LeftOut) -> Iterator[Encoded]:
        """Its images, in order; files beside them are added to `left`.

        Raises:
            DataError: it cannot be read to its end.
        """
        ...


@dataclass(frozen=True)
class FolderShard:
    """Some of the images of a folder, which follow each other in sorted order."""

    root: Path
    parts: Sequence[Parts]
    number: int

    @property
    def file(self) -> str:
        """See `Shard`."""
        return f"images-{self.number:05d}{PARQUET}"

    @property
    def count(self) -> int:
        """See `Shard`."""
        return len(self.parts)

    def fingerprint(self) -> str:
        """See `Shard`."""
        return hashlib.sha256("\0".join(map(_name, self.parts)).encode()).hexdigest()

    def images(self, left: LeftOut) -> Iterator[Encoded]:
        """See `Shard`."""
        for parts in self.parts:
            yield Encoded(_name(parts), self.root.joinpath(*parts))


@dataclass(frozen=True)
class TarShard:
    """A tar file, compressed or not, in which each image is a member. It is never unpacked."""

    root: Path
    path: Path
    size: int
    """Its bytes."""
    count = None

    @property
    def name(self) -> str:
        """Its path below the place that was given."""
        return _name(self.path.relative_to(self.root).parts)

    @property
    def file(self) -> str:
        """See `Shard`."""
        return f"{self.name}{PARQUET}"

    def fingerprint(self) -> str:
        """See `Shard`."""
        return f"{self.size} bytes"

    def images(self, left: LeftOut) -> Iterator[Encoded]:
        """See `Shard`."""
        listing, own = Listing(), self.name
        with _read_to_the_end(self.path), tarfile.open(self.path) as archive:
            while (member := archive.next()) is not None:
                # The library would keep the head of every member, and only releases from 3.13 on can be told not to.
                vars(archive)["members"].clear()
                parts = PurePosixPath(member.name).parts
                if member.isdir() or not parts or listing.skip(parts):
                    continue
                if not member.isfile():
                    listing.others[parts] = "link(s) or device(s)"
                elif listing.add(parts, partial(_opened, archive, member)):
                    yield Encoded(f"{own}/{_name(parts)}", _opened(archive, member).read())
            check_end(archive)
        left.add(listing)


@dataclass(frozen=True)
class ParquetShard:
    """A Parquet file with a column of encoded images: bytes, or a struct with a field `bytes`."""

    root: Path
    path: Path
    size: int
    """Its bytes."""
    column: str
    count: int | None

    @classmethod
    def open(cls, root: Path, path: Path, column: str) -> "ParquetShard":
        """Look for the column, and count the rows; a file that is damaged says so when its turn comes.

        Raises:
            ConfigError: it has no such column.
        """
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except (pyarrow.ArrowException, OSError):
            return cls(root, path, path.stat().st_size, column, None)
        able = [each.name for each in schema if _holds_bytes(each.type)]
        if column not in able:
            raise ConfigError(
                f"{path} has no column '{column}' of bytes: "
                + (f"give --column as {' or '.join(able)}" if able else "it has none at all")
            )
        return cls(root, path, path.stat().st_size, column, rows)

    @property
    def file(self) -> str:
        """See `Shard`."""
        return _name(self.path.relative_to(self.root).parts)

    def fingerprint(self) -> str:
        """See `Shard`."""
        return f"{self.column}, {self.size} bytes"

    def images(self, left: LeftOut) -> Iterator[Encoded]:
        """See `Shard`."""
        row, own = 0, self.file
        with (
            _read_to_the_end(self.path),
            pyarrow.parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=BUFFER) as file,
        ):
            for batch in file.iter_batches(batch_size=ROWS, columns=[self.column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    content = value["bytes"] if isinstance(value, dict) else value
                    yield Encoded(f"{own}#{row}", content or b"")
                    row += 1


def find_shards(place: str, column: str, size: int, left: LeftOut) -> list[Shard]:
    """The shards of a place, in sorted order; a folder of images is cut into shards of `size` files.

    Raises:
        DataError: there is nothing, or nothing that can be read, or shards of several kinds.
        ConfigError: a Parquet file has no such column.
    """
    path = Path(place)
    if path.is_dir():
        listing = list_folder(path)
        files = sorted(path.joinpath(*parts) for parts in listing.others if len(parts) == 1 and _kind(parts[0]))
        if not files:
            left.add(listing)
            return _slices(path, sorted(listing.images), size, left.line)
        if listing.images:
            raise DataError(f"{path} holds both images and {files[0].name}: name one kind, such as '{path}/*.tar'")
        root = path
    else:
        files = [path] if path.is_file() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not files:
            raise DataError(f"{place}: no such file or folder, and no file has such a name; {WANTED}")
        root = Path(os.path.commonpath([each.parent for each in files]))
    return _whole_files(root, files, column)


def _slices(root: Path, images: Sequence[Parts], size: int, beside: str | None) -> list[Shard]:
    if not images:
        raise DataError(f"no images in {root}{f' ({beside})' if beside else ''}: {WANTED}")
    starts = range(0, len(images), size)
    return [FolderShard(root, images[start : start + size], number) for number, start in enumerate(starts)]


def _whole_files(root: Path, files: Sequence[Path], column: str) -> list[Shard]:
    odd = [str(each) for each in files if not (each.is_file() and _kind(each.name))]
    if odd:
        raise DataError(f"no tar or Parquet file: {listed(odd)}; {WANTED}")
    if len({_kind(each.name) for each in files}) > 1:
        raise DataError(f"{root} holds both tar and Parquet files: name one kind, such as '{root}/*.tar'")
    if _kind(files[0].name) == "tar":
        return [TarShard(root, each, each.stat().st_size) for each in files]
    return [ParquetShard.open(root, each, column) for each in files]


def _kind(name: str) -> str | None:
    """`tar` or `parquet`, by a file's name; None if it is neither."""
    lower = name.lower()
    return "tar" if lower.endswith(TAR) else "parquet" if lower.endswith(PARQUET) else None


def _holds_bytes(kind: Any) -> bool:
    """Whether a column of this type can hold encoded images."""
    if pyarrow.types.is_struct(kind):
        return any(part.name == "bytes" and _holds_bytes(part.type) for part in kind)
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _name(parts: Parts) -> str:
    return printable("/".join(parts))


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None
    return content


@contextmanager
def _read_to_the_end(path: Path) -> Iterator[None]:
    """Raises DataError, which names the file, for whatever the libraries raise on damaged ones."""
    try:
        yield
    except (*DAMAGED_TAR, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(
            f"{path} is cut short or damaged ({reason:.200}): copy it again, and give the same command"
        ) from None
