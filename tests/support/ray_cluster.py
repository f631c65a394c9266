"""A Ray cluster of one node with two cores, on this machine."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from tests.support.waiting import wait_for
from tests.support.walker import ROOT

REASON = "the extra `ray` is not installed"

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
"""Without the latter a cluster asks for a token if this user happens to have one."""


def environment() -> dict[str, str]:
    """The variables of processes that use the cluster: they find the modules that this one finds."""
    return {**os.environ, **SETTINGS, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}


@contextmanager
def started() -> Iterator[str]:
    """Start a cluster; yields its address. Skips the test without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        pytest.importorskip("ray", reason=REASON)
        with _started() as address:
            yield address


@contextmanager
def _started() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Sockets lie in it, whose paths may have 107 characters.
    folder = tempfile.mkdtemp(prefix="ray-")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", str(port)]
    command += ["--num-cpus", "2", "--object-store-memory", "200000000", "--include-dashboard", "false"]
    command += ["--temp-dir", folder]
    try:
        with subprocess.Popen(command, env=environment(), cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                assert any("Ray runtime started" in line for line in process.stdout)
                yield f"127.0.0.1:{port}"
            finally:
                parts = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                process.stdout.close()
                for part in parts:
                    with suppress(psutil.NoSuchProcess):
                        part.kill()
                psutil.wait_procs(parts, timeout=20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def running(word: str) -> list[psutil.Process]:
    """The processes of this machine that have a word in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(
            word in each for each in process.info["cmdline"] or ()
        ):
            found.append(process)
    return found


def kill_parent_of(word: str) -> None:
    """Kill the worker of Ray's whose child has a word in its command line, as soon as there is one."""
    wait_for(lambda: bool(running(word)))
    (child,) = running(word)
    parent = child.parent()
    assert parent is not None
    assert parent.cmdline()[0].startswith("ray::")
    parent.kill()
