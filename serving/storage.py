"""Where a store's bytes lie: a folder, or whatever fsspec opens. One file is written as a whole or not at all."""

import tempfile
import threading
import time
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import fsspec

from mosa_deploy.errors import StoreError
from mosa_deploy.utils.files import create_bytes, replacing_folder, write_bytes

STALE_SECONDS = 3600
"""A file that was being written so long ago is what a killed process left."""


class Files(Protocol):
    """Bytes by path; paths are relative, with slashes."""

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
        return (self.root / path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        """See `Files`."""
        write_bytes(self.root / path, content)

    def create(self, path: str, content: bytes) -> None:
        """See `Files`."""
        create_bytes(self.root / path, content)

    def remove(self, path: str) -> None:
        """See `Files`."""
        (self.root / path).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        path = self.root / folder
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
            self.system, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise StoreError(f"{url} cannot be opened: {error}") from None
        self._copies: dict[str, list[Any]] = {}
        self._aside = tempfile.TemporaryDirectory(prefix="mosa-store-")
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return self.url

    def _at(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}"

    def read(self, path: str) -> bytes:
        """See `Files`."""
        content: bytes = self.system.cat_file(self._at(path))
        return content

    def write(self, path: str, content: bytes) -> None:
        """See `Files`."""
        self.system.makedirs(self._at(str(PurePosixPath(path).parent)), exist_ok=True)
        self.system.pipe_file(self._at(path), content)

    def create(self, path: str, content: bytes) -> None:
        """See `Files`."""
        self.system.makedirs(self._at(str(PurePosixPath(path).parent)), exist_ok=True)
        self.system.pipe_file(self._at(path), content, mode="create")

    def remove(self, path: str) -> None:
        """See `Files`."""
        if self.system.exists(self._at(path)):
            self.system.rm_file(self._at(path))

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        return sorted(PurePosixPath(found["name"]).name for found in self._listed(folder))

    def _listed(self, folder: str) -> list[Any]:
        """What fsspec says of a folder's files: name, size, and mostly when they were written."""
        self.system.invalidate_cache()
        try:
            found: list[Any] = self.system.ls(self._at(folder), detail=True)
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
