"""`bentoml serve` in a process of its own, for tests, the demo and measurements."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 120
PROC = Path("/proc")
WORKER = "_bentoml_impl.worker.service"
KEY = "root-key"
"""The admin key: clients that send it may change tasks, if the service was started with it."""


@dataclass(frozen=True)
class Server:
    """A running `bentoml serve`."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def ready(self) -> bool:
        """Whether /readyz answers with success now."""
        try:
            return httpx.get(f"{self.address}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False

    def classify(self, task: str, content: bytes) -> httpx.Response:
        """Classify one image with a task."""
        files = {"image": ("some.png", content)}
        return httpx.post(f"{self.address}/classify", files=files, data={"task": task}, timeout=60)

    def wait_until(self, condition: str) -> None:
        """Wait until the log contains the text `condition`, or if it is `ready` until /readyz answers.

        Raises:
            RuntimeError: this takes too long; the message has the end of the log.
        """
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if self.ready() if condition == "ready" else condition in self.log.read_text():
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        if condition not in self.log.read_text():
            raise RuntimeError(f"no '{condition}' within {READY_SECONDS} s:\n{self.log.read_text()[-3000:]}")

    def wait_until_refused(self) -> None:
        """Wait until connections are refused. A connection that is accepted but not answered raises an httpx error.

        Raises:
            RuntimeError: connections are still accepted after the time limit.
        """
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            try:
                httpx.get(f"{self.address}/v1/tasks", timeout=2)
            except httpx.ConnectError:
                return
        raise RuntimeError(f"connections are accepted for {READY_SECONDS} s")

    def lines(self) -> list[dict[str, object]]:
        """The JSON objects at the ends of the lines about requests."""
        found = (line.partition("] {") for line in self.log.read_text().splitlines())
        return [json.loads("{" + text) for _, mark, text in found if mark]

    def family(self) -> list[psutil.Process]:
        """All processes of the server."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """The processes that speak HTTP, oldest first."""
        found = [each for each in self.family() if any(WORKER in part for part in each.cmdline())]
        return sorted(found, key=lambda each: each.create_time())

    def memory(self) -> int:
        """Bytes of memory that belong to its workers alone (USS)."""
        return sum(each.memory_full_info().uss for each in self.workers())


@dataclass(frozen=True)
class Installation:
    """A Python with the service installed, the service's name, and the working directory."""

    python: str | Path
    service: str
    cwd: Path


HERE = Installation(sys.executable, ".", ROOT)


@contextmanager
def serve(artifacts: Path | str, folder: Path, place: Installation = HERE, **settings: object) -> Iterator[Server]:
    """Start a server on a free port, with its log and BentoML's home in `folder`, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [place.python, "-m", "bentoml", "serve", place.service, "--port", str(port), "--host", "127.0.0.1"]
    own = {"MOSA_ARTIFACTS": str(artifacts), "BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    given = {f"MOSA_{name.upper()}": str(value) for name, value in settings.items()}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=place.cwd, env={**os.environ, **own, **given}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield Server(process, f"http://127.0.0.1:{port}", folder / "log")
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
