"""Exports into one store wait for each other where they write what all of its tasks share: graphs and their index."""

import hashlib
import os
import tempfile
from pathlib import Path

from filelock import FileLock


def one_at_a_time(store: Path) -> FileLock:
    """A lock on what tasks of a store share, for exports by this user on this machine.

    It lies among the temporary files: a store holds nothing but what is served. The system frees it when the process
    ends, however that is.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    digest = hashlib.sha256(os.fsencode(store.resolve())).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"mosa-export-{user}-{digest}.lock")
