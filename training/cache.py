"""Sets of decoded images on disk, which are filled as they are read and used again by later runs.

    CACHE/<digest>/pixels     (N, H, W, 3) uint8
    CACHE/<digest>/records    what is known of each image; its last field says whether the image is there

The digest is of everything that decides the pixels: names, sizes and times of the files, the preprocessing, and
Pillow's version. So other images, or another size, are another folder. Every image is written before its record, and a
checksum in the record covers both. What is cut short or damaged is therefore found and decoded again, and any number of
processes may fill the same cache: they write the same bytes. Nothing here loads torch.
"""

import hashlib
import math
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.errors import ConfigError, DataError, WriteError
from mosa_deploy.utils.files import with_room
from training.duplicates import Fingerprint
from training.headers import Headers
from training.inspection import Finding, Inspection
from training.tasks.base import Example

FORMAT = 1
"""Part of the digest: raise it when the files below change."""

EMPTY, READABLE, UNREADABLE = range(3)
"""The states of an image. 0 is what a file holds where nothing was written."""

RECORD = np.dtype(
    [
        ("check", "<u4"),
        ("brightest", "u1"),
        ("frames", "u1"),
        ("grey", "<i4"),
        ("colour", "<i4"),
        ("content", "u1", (32,)),
        ("pixels", "u1", (32,)),
        ("perceptual", "<u8"),
        ("reason", "S240"),
        ("state", "u1"),
    ]
)
"""What is known of one image: see `Finding`. -1 is no grey and no colour of 16 bits."""

ABSENT = -1

FILES = ("pixels", "records")

GB = 10**9


@dataclass(frozen=True)
class CachedSet:
    """The place of one set of images in the cache."""

    folder: Path
    count: int
    size: tuple[int, int]

    @classmethod
    def of(cls, root: Path, examples: Sequence[Example], how: Inspection) -> "CachedSet":
        """The place of these images, read like this; nothing is written yet."""
        read = [how.preprocess] if how.margin is None else [how.preprocess, how.margin]
        preprocess = " ".join(each.model_dump_json(exclude={"mean", "std"}) for each in read)
        digest = hashlib.sha256(f"{FORMAT} {PIL.__version__} {preprocess} {how.max_pixels}".encode())
        for example in examples:
            digest.update(f"\n{example.name!a} {_version(example)}".encode())
        return cls(root / digest.hexdigest()[:32], len(examples), how.kept.size)

    @property
    def bytes_each(self) -> int:
        """The bytes of one image."""
        return self.size[0] * self.size[1] * 3

    def files(self) -> dict[Path, int]:
        """The files of the set, and their sizes."""
        sizes = (self.count * self.bytes_each, self.count * RECORD.itemsize)
        return {self.folder / name: size for name, size in zip(FILES, sizes, strict=True)}

    def make(self) -> None:
        """Make the files, or give them their full size again; what they hold stays.

        Raises:
            WriteError: the disk has no room for files of this size.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, size in self.files().items():
            with with_room(path), path.open("ab") as handle:
                if handle.tell() != size:
                    handle.truncate(size)

    def pixels(self) -> Pixels:
        """All pixels (N, H, W, 3), mapped: the system may drop what was read from memory at any time."""
        return np.memmap(self.folder / "pixels", np.uint8, "r", shape=(self.count, *self.size, 3))

    def records(self) -> NDArray[np.void]:
        """All records (N,), mapped."""
        return np.memmap(self.folder / "records", RECORD, "r", shape=(self.count,))

    @contextmanager
    def writer(self) -> Iterator["Writer"]:
        """Write images.

        Raises:
            DataError: the files are gone.
            WriteError: the disk is full.
        """
        pixels, records = self.files()
        try:
            with with_room(self.folder), pixels.open("r+b") as first, records.open("r+b") as second:
                yield Writer(self, first, second)
        except FileNotFoundError:
            raise DataError(f"{self.folder} was removed while it was in use: run the command again") from None


@dataclass(frozen=True)
class Writer:
    """Writes into the files of a set, which are not mapped: a disk that is full is then an error, and no signal."""

    of: CachedSet
    pixels: BinaryIO
    records: BinaryIO

    def is_readable(self, row: int) -> bool:
        """Whether an image has been written, perhaps by another run."""
        self.records.seek(row * RECORD.itemsize)
        return self.records.read(RECORD.itemsize)[-1:] == bytes([READABLE])

    def write(self, row: int, finding: Finding, pixels: Pixels | None) -> None:
        """Write an image, then its record."""
        if pixels is not None:
            self.pixels.seek(row * self.of.bytes_each)
            self.pixels.write(pixels.tobytes())
            self.pixels.flush()
        self.records.seek(row * RECORD.itemsize)
        self.records.write(_record(finding, pixels).tobytes())
        self.records.flush()


def reserve(root: Path, sets: Sequence[CachedSet], most: float) -> None:
    """Make the files of these sets in the cache, if there is room for all of them; `most` is the cache's bound in GB.

    Raises:
        ConfigError: `root` is a file, or the cache would exceed its bound.
        WriteError: the disk has too little room.
    """
    if root.exists() and not root.is_dir():
        raise ConfigError(f"--cache {root} is a file: name a folder")
    root.mkdir(parents=True, exist_ok=True)
    files = {path: size for each in sets for path, size in each.files().items()}
    needed = sum(files.values())
    others = {path: path.stat() for path in root.glob("*/*") if path.name in FILES and path not in files}
    held = sum(status.st_size for status in others.values())
    sizes = " and ".join(f"{height} x {width}" for height, width in dict.fromkeys(each.size for each in sets))
    what = f"{sum(each.count for each in sets):,} images of {sizes} need {_gb(needed)}"
    if held + needed > most * GB:
        oldest = min(others, key=lambda path: others[path].st_mtime_ns).parent if others else None
        remove = f", or remove what is no longer used there, {oldest} first" if oldest else ""
        raise ConfigError(
            f"--cache-size {most:g}: {what}, and {root} holds {_gb(held)} of other images: give --cache-size"
            f" {math.ceil((held + needed) / GB)}{remove}"
        )
    written = sum(512 * getattr(path.stat(), "st_blocks", 0) for path in files if path.exists())
    free = shutil.disk_usage(root).free
    if needed - written > free:
        raise WriteError(
            f"{what} in the cache {root}, whose disk has {_gb(free)} free: free some space, or name another folder with"
            " --cache"
        )
    for each in sets:
        each.make()


def _gb(count: int) -> str:
    return f"{count / GB:.1f} GB"


def checksum(record: NDArray[np.void] | np.void, pixels: Pixels | None) -> int:
    """The checksum of a record without its first field, and of its pixels."""
    return zlib.crc32(b"" if pixels is None else np.ascontiguousarray(pixels).data, zlib.crc32(record.tobytes()[4:]))


def finding(record: np.void, name: str) -> Finding:
    """What the record of the image with this name says."""
    headers = Headers(
        [int(record["grey"])] if record["grey"] != ABSENT else [],
        [int(record["colour"])] if record["colour"] != ABSENT else [],
        [name] if record["frames"] else [],
    )
    if record["state"] != READABLE:
        return Finding(headers, record["reason"].decode(errors="ignore"))
    content = record["content"].tobytes()
    mark = Fingerprint(content, record["pixels"].tobytes(), int(record["perceptual"]))
    return Finding(headers, None, content, int(record["brightest"]), mark)


def _record(finding: Finding, pixels: Pixels | None) -> NDArray[np.void]:
    record = np.zeros((), RECORD)
    headers = finding.headers
    record["frames"] = bool(headers.frames)
    record["grey"] = headers.grey[0] if headers.grey else ABSENT
    record["colour"] = headers.colour[0] if headers.colour else ABSENT
    if finding.reason is not None or finding.mark is None:
        record["reason"] = (finding.reason or "").encode(errors="replace")[: RECORD["reason"].itemsize]
        record["state"] = UNREADABLE
    else:
        record["brightest"] = finding.brightest
        record["content"] = np.frombuffer(finding.mark.content, np.uint8)
        record["pixels"] = np.frombuffer(finding.mark.pixels, np.uint8)
        record["perceptual"] = finding.mark.perceptual
        record["state"] = READABLE
    record["check"] = checksum(record, pixels)
    return record


def _version(example: Example) -> str:
    """What changes when the bytes of an image change."""
    path = getattr(example.read, "__self__", None)
    try:
        if isinstance(path, Path):
            status = path.stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        return hashlib.sha256(example.read()).hexdigest()
    except OSError as error:
        return str(error.errno)
