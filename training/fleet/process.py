"""A process that carries out the command lines of a task.

One is enough for a task: libraries that take seconds to import are imported once for all of its stages, and one that
dies, for want of memory perhaps, takes no other task with it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from mosa_deploy.utils.ray_cluster import Needs

Line = Sequence[str]
"""A command line, as the words after `mosa`."""

PYTHON = (sys.executable, "-P", "-u")
"""Without `-P` a file of the user's in the current folder, such as export.py, would be imported in the place of ours;
without `-u` a process that is killed would take the last lines of its log with it."""

COMMAND = (*PYTHON, "-m", "mosa_deploy.in_turn")


class End(NamedTuple):
    """A command line that ended."""

    line: Line
    seconds: float | None
    """How long it took; None if it was killed."""
    fault: str = ""
    """Why it failed; nothing if it succeeded."""
    lost: bool = False
    """Whether it failed because its machine or its process was lost, and not by itself."""


class Process:
    """Carries out command lines one after the other; see `Running`."""

    def __init__(self, lines: Sequence[Line], log: Path, threads: int = 1) -> None:
        self.lines, self.log = lines, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as handle:
            self._begun = handle.tell()
            self._process = subprocess.Popen(
                [*COMMAND, json.dumps(lines), str(os.getpid())],
                env=environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=handle,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)

    def ends(self) -> Iterator[End]:
        """Wait for each command line."""
        assert self._process.stdout is not None
        told = (json.loads(line) for line in self._process.stdout)
        return ends_of(self.lines, told, self._process.wait, self.log, self._begun)

    def kill(self) -> None:
        """End it."""
        self._process.kill()


def ends_there(needs: Needs, lines: Sequence[Line], log: Path) -> Iterator[End]:
    """What a node of a cluster does: carry them out if it has what it needs, which a node that came later may not."""
    if lacking := needs.lacking():
        yield End(lines[0], None, f"the node {socket.gethostname()} {'; '.join(lacking)}")
        return
    with Process(lines, log) as process:
        yield from process.ends()


def ends_of(
    lines: Sequence[Line], told: Iterator[dict[str, Any]], wait: Callable[[], int | None], log: Path, begun: int
) -> Iterator[End]:
    """How command lines end, by what their process tells of them. `wait` waits for its exit code, None if unknown."""
    for line in lines:
        end = next(told, None)
        if end is not None and not end["code"]:
            yield End(line, end["seconds"])
            continue
        seconds, code = None if end is None else end["seconds"], wait()
        lost = code is None
        yield End(line, seconds, "its process was lost" if code is None else fault_in(log, begun, code), lost)
        return


def environment(threads: int) -> dict[str, str]:
    """The variables of a process: it finds the modules that this one finds, and computes with so many threads."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": str(threads)}


def fault_in(log: Path, start: int, code: int) -> str:
    """Why a process ended with this exit code, as its part of a log says, which begins at `start`."""
    if code < 0:
        killed = signal.Signals(-code).name
        return f"killed by {killed}" + (", perhaps for want of memory" if killed == "SIGKILL" else "")
    with log.open("rb") as handle:
        handle.seek(start)
        lines = [line for line in handle.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1].strip()
