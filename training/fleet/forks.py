"""Processes that have imported their libraries already: forks of one that waits, which start within milliseconds."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from training.fleet.process import PYTHON, End, Line, Process, ends_of, environment

SERVER = (*PYTHON, "-m", "mosa_deploy.fork_server")

MODULES = ("training.tune", "torchmetrics", "torch.utils.tensorboard", "networkx", "onnxscript")
"""What the commands of a task import, but for ONNX Runtime: it starts a thread, which a fork would not have."""


class ForkServer:
    """Begins to carry out command lines in forks of a server, or in processes that start anew where there is none.

    The server starts with the first of them, and ends with the block.
    """

    def __init__(self, threads: int = 1, modules: Sequence[str] = MODULES) -> None:
        self.threads, self.modules = threads, modules
        self._lock = threading.Lock()
        self._server: tuple[socket.socket, subprocess.Popen[bytes]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            requests, process = self._server
            requests.close()
            process.kill()  # It may be importing still.
            process.wait()

    def start(self, lines: Sequence[Line], log: Path) -> "Process | Fork":
        """Begin to carry them out."""
        if sys.platform != "linux":
            return Process(lines, log, self.threads)
        with self._lock:
            try:
                return Fork(self._requests(), lines, log)
            except BrokenPipeError:  # The server was killed, perhaps for want of memory.
                return Process(lines, log, self.threads)

    def _requests(self) -> socket.socket:
        if self._server is None:
            ours, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen(
                    [*SERVER, *self.modules],
                    env=environment(self.threads),
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            self._server = ours, process
        return self._server[0]


class Fork:
    """Carries out command lines one after the other in a fork of a server; see `Running`."""

    def __init__(self, requests: socket.socket, lines: Sequence[Line], log: Path) -> None:
        """Raises BrokenPipeError if there is no server any more."""
        self.lines, self.log = lines, log
        self._exit: int | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        request, alive = os.pipe()
        told, tell = os.pipe()
        with ExitStack() as ours, log.open("ab") as handle:
            self._begun = handle.tell()
            self._alive = ours.enter_context(os.fdopen(alive, "w", encoding="utf-8"))
            self._told = ours.enter_context(os.fdopen(told, encoding="utf-8"))
            try:
                socket.send_fds(requests, [b"\0"], [request, tell, handle.fileno()])
            finally:
                os.close(request)
                os.close(tell)
            self._alive.write(json.dumps(lines) + "\n")
            self._alive.flush()
            ours.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        with self._told as told:
            for _ in told:  # Until the process has ended.
                pass

    def ends(self) -> Iterator[End]:
        """Wait for each command line."""
        return ends_of(self.lines, self._ends(), self._code, self.log, self._begun)

    def _ends(self) -> Iterator[dict[str, Any]]:
        for line in self._told:
            end = json.loads(line)
            if "exit" in end:
                self._exit = end["exit"]
                return
            yield end

    def _code(self) -> int | None:
        for _ in self._ends():
            pass
        return self._exit

    def kill(self) -> None:
        """End it."""
        self._alive.close()
