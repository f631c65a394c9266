"""Carry out command lines of `mosa` for several tasks at a time: in processes of this machine, or on a cluster.

A task that fails stops no other. One whose machine is lost on the way goes on elsewhere, with the command lines that
are left of it then.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from training.fleet.process import End, Line, Process

ATTEMPTS = 4
"""How often a task whose machine is lost is begun, the first time included."""


@dataclass(frozen=True)
class Work:
    """The command lines of a task."""

    name: str
    lines: Callable[[], Sequence[Line]]
    """Those that are left to carry out."""
    log: Path
    """What they print is appended to it."""


class Running(Protocol):
    """Command lines that are being carried out, one after the other, until one fails."""

    def ends(self) -> Iterator[End]:
        """Wait for each of them."""
        ...

    def kill(self) -> None:
        """End them; may be called by any thread, and more than once."""
        ...


Told = Callable[[Work, End], None]
"""Is told of each command line that ended, by the threads that wait for them."""

Start = Callable[[Sequence[Line], Path], AbstractContextManager[Running]]
"""Begins to carry out command lines whose output goes to a log; nothing of it runs on after the block."""


class Fault(NamedTuple):
    """Why the work of a task ended early."""

    line: Line
    """The command line that failed."""
    text: str


@dataclass
class Crew:
    """Up to `jobs` tasks at a time, with one thread each, so that what comes out does not depend on `jobs`."""

    jobs: int
    start: Start = Process
    _running: set[Running] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def carry_out(self, works: Sequence[Work], told: Told) -> dict[str, Fault]:
        """Carry out all works; returns the faults of those that failed, by name. One that fails stops no other."""
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._carry_out, work, told): work.name for work in works}
            try:
                ended = {futures[future]: future.result() for future in as_completed(futures)}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise
        return {name: fault for name, fault in ended.items() if fault is not None}

    def _stop(self) -> None:
        self._stopped.set()
        for running in list(self._running):
            running.kill()

    def _carry_out(self, work: Work, told: Told) -> Fault | None:
        last = None
        for _ in range(ATTEMPTS):
            last = self._attempt(work, told)
            if last is None or not last.fault:
                return None
            if not last.lost or self._stopped.is_set():
                break
        assert last is not None
        return Fault(last.line, last.fault)

    def _attempt(self, work: Work, told: Told) -> End | None:
        """Carry out the stages that are not finished; returns how the last command line ended, if any was run."""
        last = None
        with self.start(work.lines(), work.log) as running:
            self._running.add(running)
            if self._stopped.is_set():  # It started while the others were being ended.
                running.kill()
            try:
                for last in running.ends():
                    told(work, last)
            except BaseException:
                running.kill()  # The end of the block waits for it.
                raise
            finally:
                self._running.discard(running)
        return last
