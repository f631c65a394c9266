"""Which of the workers infers: the first one that gets the lock, and after its death the next one that starts.

The kernel frees the lock with the process, so there is no owner that is dead and none that is double. All workers of a
server have one parent, after which the meeting place is named.
"""

import fcntl
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mosa_deploy.errors import ConfigError


@dataclass(frozen=True)
class WorkerRendezvous:
    """A folder that only this user can enter."""

    folder: Path

    @classmethod
    def of_siblings(cls) -> "WorkerRendezvous":
        """The meeting place of the workers of one server.

        Raises:
            ConfigError: someone else has made a folder of that name.
        """
        folder = Path(tempfile.gettempdir()) / f"mosa-{os.getuid()}-{os.getppid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError(f"{folder} belongs to someone else: remove it, or set TMPDIR")
        return cls(folder)

    @property
    def socket(self) -> Path:
        """Where the owner listens."""
        return self.folder / "inference.sock"

    def claim(self) -> IO[bytes] | None:
        """The lock, to be kept open, if no other process has it."""
        lock = (self.folder / "owner.lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock
