"""Where a store's bytes lie: a folder, or whatever fsspec opens. One file is written as a whole or not at all."""

import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.dircache import DirCache

from mosa_deploy.errors import MosaError, StoreAccessError, StoreError
from mosa_deploy.utils.files import create_bytes, replacing_folder, write_bytes

log = logging.getLogger("mosa_deploy.serving")

STALE_SECONDS = 3600
"""A file that was being written so long ago is what a killed process left."""

SMALL_SECONDS, LARGE_SECONDS = 10.0, 300.0
"""How long an object store may take for a listing or a JSON file, and for a version or a graph."""

OPTIONS: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 1}}
"""Arguments of filesystems. To read large files in parts, s3fs would ask for the size of each before it reads it."""

REASON = 200
"""The most characters of a filesystem's own words that an error repeats."""


class Files(Protocol):
    """Bytes by path; paths are relative, with slashes. Every method raises StoreAccessError if the store is away."""

    def read(self, path: str) -> bytes:
        """The bytes; FileNotFoundError if there is no such file."""
        ...

    def write(self, path: str, content: bytes) -> None:
        """Replace a file as a whole."""
        ...

    def create(self, path: str, content: bytes) -> None:
        """Write a file as a whole; FileExistsError if it is there, even if another process has just written it."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        ...

    def names(self, folder: str) -> list[str]:
        """What lies in a folder, sorted; hidden names are not shown."""
        ...

    def local(self, folder: str) -> Path:
        """A folder of this machine with the same files; StoreError if there is none."""
        ...

    def close(self) -> None:
        """Remove what was copied here."""
        ...


class LocalFiles:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def read(self, path: str) -> bytes:
        """See `Files`."""
        with _access(self, path, "read", FileNotFoundError, NotADirectoryError):
            return (self.root / path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        """See `Files`."""
        with _access(self, path, "written"):
            write_bytes(self.root / path, content)

    def create(self, path: str, content: bytes) -> None:
        """See `Files`."""
        with _access(self, path, "written", FileExistsError):
            create_bytes(self.root / path, content)

    def remove(self, path: str) -> None:
        """See `Files`."""
        with _access(self, path, "written"):
            (self.root / path).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        path = self.root / folder
        with _access(self, folder, "read"):
            return sorted(p.name for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []

    def local(self, folder: str) -> Path:
        """See `Files`."""
        path = self.root / folder
        if not path.is_dir():
            raise StoreError(f"{path}: no such folder; write it with `mosa export --out {self.root}`")
        return path

    def close(self) -> None:
        """See `Files`."""

    def sweep(self, folder: str, seconds: float = STALE_SECONDS) -> None:
        """Remove what a killed process was writing."""
        for path in (self.root / folder).glob(".*.tmp"):
            if path.is_file() and time.time() - path.stat().st_mtime > seconds:
                path.unlink(missing_ok=True)


class RemoteFiles:
    """A URL of fsspec; object stores put one object as a whole. Backbones are copied to this machine once."""

    def __init__(self, url: str) -> None:
        """Raises StoreError if fsspec cannot open the URL."""
        self.url = url
        try:
            self.system, self.root = fsspec.core.url_to_fs(url, **OPTIONS.get(url.partition(":")[0], {}))
        except (ImportError, ValueError, OSError) as error:
            extra = "; pip install 'mosa-deploy[s3]'" if isinstance(error, ImportError) and "s3fs" in str(error) else ""
            raise StoreError(f"{url} cannot be opened: {error}{extra}") from None
        # A listing that the filesystem remembers would hide what other services have written since.
        if isinstance(cache := getattr(self.system, "dircache", None), DirCache):
            cache.use_listings_cache = False
        self._object_store = isinstance(self.system, AsyncFileSystem)
        self._exclusive: bool | None = None
        """Whether `create` refuses a file that is there; None before the first one."""
        self._copies: dict[str, list[Any]] = {}
        self._aside = tempfile.TemporaryDirectory(prefix="mosa-store-")
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return self.url

    def _at(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}"

    def _limit(self, path: str = ".json") -> dict[str, float]:
        """The time limit of a call, where the filesystem takes one: retries may go on for many minutes."""
        if not self._object_store:
            return {}
        return {"timeout": SMALL_SECONDS if path.endswith(".json") else LARGE_SECONDS}

    def read(self, path: str) -> bytes:
        """See `Files`."""
        with _access(self, path, "read", FileNotFoundError):
            content: bytes = self.system.cat_file(self._at(path), **self._limit(path))
            return content

    def write(self, path: str, content: bytes) -> None:
        """See `Files`."""
        with _access(self, path, "written"):
            self._pipe(path, content)

    def create(self, path: str, content: bytes) -> None:
        """See `Files`. A filesystem that overwrites what is there is told in the log."""
        with _access(self, path, "written", FileExistsError):
            self._pipe(path, content, mode="create")
            if self._exclusive is None:
                self._exclusive = self._refuses(path, content)

    def _refuses(self, path: str, content: bytes) -> bool:
        """Whether a file that was just written cannot be created once more."""
        try:
            self._pipe(path, content, mode="create")
        except FileExistsError:
            return True
        log.warning("%s overwrites files that another service has just written: let one service change tasks", self)
        return False

    def _pipe(self, path: str, content: bytes, **mode: str) -> None:
        if not self._object_store:  # an object store has no folders, and s3fs would make a bucket
            self.system.makedirs(self._at(str(PurePosixPath(path).parent)), exist_ok=True)
        self.system.pipe_file(self._at(path), content, **mode, **self._limit(path))

    def remove(self, path: str) -> None:
        """See `Files`."""
        with _access(self, path, "written"), suppress(FileNotFoundError):
            self.system.rm_file(self._at(path), **self._limit())

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        return sorted(PurePosixPath(found["name"]).name for found in self._listed(folder))

    def _listed(self, folder: str) -> list[Any]:
        """What fsspec says of a folder's files: name, size, and mostly when they were written."""
        with _access(self, folder, "read"):
            try:
                found: list[Any] = self.system.ls(self._at(folder), detail=True, **self._limit())
            except FileNotFoundError:
                return []
            return [each for each in found if not PurePosixPath(each["name"]).name.startswith(".")]

    def local(self, folder: str) -> Path:
        """See `Files`."""
        with self._lock:
            listed, copy = self._listed(folder), Path(self._aside.name) / folder
            if not listed:
                raise StoreError(f"{self.url}/{folder}: no such folder; copy the exported backbone there")
            # A graph for tasks of another kind may have come since, or an engine.
            if self._copies.get(folder) != listed:
                with replacing_folder(copy) as aside:
                    for name in (PurePosixPath(each["name"]).name for each in listed):
                        (aside / name).write_bytes(self.read(f"{folder}/{name}"))
                self._copies[folder] = listed
            return copy

    def close(self) -> None:
        """See `Files`."""
        self._aside.cleanup()


def open_files(where: str) -> LocalFiles | RemoteFiles:
    """A folder by its path, or a URL with `://`."""
    return RemoteFiles(where) if "://" in where else LocalFiles(Path(where))


@contextmanager
def _access(files: object, path: str, done: str, *told: type[OSError]) -> Iterator[None]:
    """Turn what a filesystem raises, except `told`, into one error: each filesystem has errors of its own.

    Raises:
        StoreAccessError: names the store, what cannot be done there, and why.
    """
    try:
        yield
    except MosaError:
        raise
    except Exception as fault:
        if isinstance(fault, told):
            raise
        who = "read" if done == "read" else "write"
        raise StoreAccessError(
            f"{files}/{path} cannot be {done} ({_reason(fault)}): see that the store is up, and that this service may"
            f" {who} there"
        ) from fault


def _reason(fault: Exception) -> str:
    """Why, in one short line."""
    text = " ".join(str(getattr(fault, "strerror", None) or fault).split())[:REASON]
    return text or ("no answer in time" if isinstance(fault, TimeoutError) else type(fault).__name__)
