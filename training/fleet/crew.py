"""Carry out command lines of `mosa` for several tasks at a time, each task in a process of its own.

A process is enough for a task: libraries that take seconds to import are imported once for all of its stages, and one
that dies, for want of memory perhaps, takes no other task with it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

Told = Callable[["Work", int, float, bool], None]
"""Is told of each command line that ended: its place, its seconds, and whether it succeeded."""


@dataclass(frozen=True)
class Work:
    """The command lines of a task, each as the words after `mosa`."""

    name: str
    lines: Sequence[Sequence[str]]
    log: Path
    """What they print is appended to it."""


@dataclass(frozen=True)
class Fault:
    """Why the work of a task ended early."""

    place: int
    """Which of its command lines failed."""
    text: str


@dataclass
class Crew:
    """Up to `jobs` processes at a time, with one thread each, so that what comes out does not depend on `jobs`."""

    jobs: int
    told: Told
    _running: set["subprocess.Popen[str]"] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def carry_out(self, works: Sequence[Work]) -> dict[str, Fault]:
        """Carry out all works; returns the faults of those that failed, by name. One that fails stops no other."""
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._carry_out, work): work.name for work in works}
            try:
                ended = {futures[future]: future.result() for future in as_completed(futures)}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise
        return {name: fault for name, fault in ended.items() if fault is not None}

    def _stop(self) -> None:
        self._stopped.set()
        for process in list(self._running):
            process.kill()

    def _carry_out(self, work: Work) -> Fault | None:
        work.log.parent.mkdir(parents=True, exist_ok=True)
        with work.log.open("ab") as log:
            start = log.tell()
            command = [*PYTHON, json.dumps(work.lines), str(os.getpid())]
            with subprocess.Popen(
                command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            ) as process:
                self._running.add(process)
                if self._stopped.is_set():  # It started while the others were being ended.
                    process.kill()
                try:
                    place = self._listen(work, process)
                except BaseException:
                    process.kill()  # The end of the block waits for it.
                    raise
            self._running.discard(process)
        return None if process.returncode == 0 else Fault(place, fault_in(work.log, start, process.returncode))

    def _listen(self, work: Work, process: "subprocess.Popen[str]") -> int:
        """Tell of each command line that ends; returns how many succeeded."""
        assert process.stdout is not None
        place = 0
        for line in process.stdout:
            end = json.loads(line)
            self.told(work, place, end["seconds"], end["code"] == 0)
            if end["code"]:
                break
            place += 1
        return place


PYTHON = (sys.executable, "-P", "-u", "-m", "mosa_deploy.in_turn")
"""Without `-P` a file of the user's in the current folder, such as export.py, would be imported in the place of ours;
without `-u` a process that is killed would take the last lines of its log with it."""


def environment() -> dict[str, str]:
    """The variables of a process: it finds the modules that this one finds, and computes with one thread."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


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
