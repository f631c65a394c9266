"""The leader: the one worker that infers. It is the first to get the lock, and when it dies, the next to start.

The kernel frees the lock when its process ends, so there is never more than one leader, and a dead one keeps nobody
out. The workers of a server find each other in a folder that is named after their parent process.
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
        """The folder in which the workers of this server meet.

        Raises:
            ConfigError: another user has made a folder of that name.
        """
        folder = Path(tempfile.gettempdir()) / f"mosa-{os.getuid()}-{os.getppid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError(f"{folder} belongs to someone else: remove it, or set TMPDIR")
        return cls(folder)

    @property
    def socket(self) -> Path:
        """Where the leader listens."""
        return self.folder / "inference.sock"

    def claim(self) -> IO[bytes] | None:
        """Take the lock and return it, to be kept open; None if another process has it."""
        lock = (self.folder / "leader.lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        return lock
