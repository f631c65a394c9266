"""Notices a second service on one store: each has its own view of what is served, and their changes get lost.

In a folder every service holds a lock on the folder itself, which the kernel frees when it ends, however it ends.
Behind a URL every service writes a small file again and again, and another one counts once its file has been seen to
change: what a crash left never does.
"""

import fcntl
import logging
import os
import threading
import uuid
from contextlib import suppress
from pathlib import Path

from serving.storage import LocalFiles, RemoteFiles

log = logging.getLogger("mosa_deploy.serving")

SERVICES = "services"
"""The folder of the files of services, in a store behind a URL."""

SECONDS = 30.0
"""How often a service writes its file and looks at the others."""

FORGOTTEN = 20
"""After so many looks a file that has not changed is removed."""

WARNING = (
    "another service uses %s too: neither sees what the other changes, and a later change undoes an earlier one; let"
    " only one change tasks, or give each a store of its own"
)


class Presence:
    """Says of this service that it is there, and warns of others, until `close`."""

    def __init__(self, files: LocalFiles | RemoteFiles, seconds: float = SECONDS) -> None:
        self.files, self.seconds = files, seconds
        self._lock: int | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if isinstance(files, LocalFiles):
            self._lock = _held(files.root)
        else:
            self._beats = Heartbeat(files)
            self._thread = threading.Thread(target=self._beat, name="mosa-presence", daemon=True)
            self._thread.start()

    def _beat(self) -> None:
        try:
            while True:
                self._beats.beat()
                if self._ended.wait(self.seconds):
                    break
        except Exception as fault:  # fsspec's systems raise errors of their own
            log.info("nothing warns of a second service on %s: %s", self.files, str(fault).splitlines()[:1])

    def close(self) -> None:
        """Leave the store."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._thread:
            self._ended.set()
            self._thread.join(self.seconds)
            self._beats.leave()


class Heartbeat:
    """The file of this service in a store behind a URL, and what was seen of the others."""

    def __init__(self, files: RemoteFiles) -> None:
        self.files, self.name, self.count = files, f"{uuid.uuid4().hex}.txt", 0
        self.seen: dict[str, tuple[bytes, int]] = {}
        """Name -> content, and how many looks ago it changed."""
        self.warned = False

    def beat(self) -> None:
        """Write this service's file again, and look at the others."""
        self.count += 1
        self.files.write(f"{SERVICES}/{self.name}", f"{os.getpid()} {self.count}\n".encode())
        for name in self.files.names(SERVICES):
            if name != self.name:
                self._look(name)

    def _look(self, name: str) -> None:
        try:
            content = self.files.read(f"{SERVICES}/{name}")
        except FileNotFoundError:
            self.seen.pop(name, None)
            return
        before, age = self.seen.get(name, (content, 0))
        self.seen[name] = (content, age + 1 if content == before else 0)
        if content != before and not self.warned:
            self.warned = True
            log.warning(WARNING, self.files)
        if self.seen[name][1] > FORGOTTEN:
            self.files.remove(f"{SERVICES}/{name}")

    def leave(self) -> None:
        """Remove this service's file."""
        with suppress(Exception):  # it is forgotten soon in any case
            self.files.remove(f"{SERVICES}/{self.name}")


def _held(root: Path) -> int | None:
    """A shared lock on the store's folder; warns if another process has one. None if the folder cannot be locked."""
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        # Nobody else has a lock if the exclusive one is to be had.
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning(WARNING, root)
    except OSError:
        # A network file system that locks no folders.
        os.close(folder)
        return None
    with suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return folder
