"""The service as it is deployed: `bentoml serve` in a process of its own, asked over HTTP."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mosa_deploy.bundle import Bundle
from tests.serving.conftest import picture, scores
from tests.walker import ROOT

READY_SECONDS = 60
PROC = Path("/proc")


@dataclass(frozen=True)
class Server:
    """A running `bentoml serve`."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def ready(self) -> bool:
        """Whether it answers /readyz with success now."""
        try:
            return httpx.get(f"{self.address}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False

    def classify(self, task: str, seed: int = 0) -> httpx.Response:
        files = {"image": ("some.png", picture(seed))}
        return httpx.post(f"{self.address}/classify", files=files, data={"task": task}, timeout=30)

    def wait_until(self, condition: str) -> None:
        """Wait for a text in the log, or for /readyz where `condition` is `ready`."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if self.ready() if condition == "ready" else condition in self.log.read_text():
                return
            time.sleep(0.2)
        pytest.fail(f"no '{condition}' within {READY_SECONDS} s:\n{self.log.read_text()[-3000:]}")


@contextmanager
def serve(artifacts: Path, folder: Path) -> Iterator[Server]:
    """Start a server on a free port, its log and BentoML's own home below `folder`; stop it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", ".", "--port", str(port), "--host", "127.0.0.1"]
    own = {"MOSA_ARTIFACTS": str(artifacts), "BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Server(process, f"http://127.0.0.1:{port}", folder / "log")
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found: set[int] = set()
    new = {pid}
    while new:
        found |= new
        new = {child for child, parent in parents.items() if parent in found} - found
    return found


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of both tasks, and of a third one whose graph is another's."""
    folder = tmp_path_factory.mktemp("bentoml")
    artifacts = Path(shutil.copytree(store, folder / "artifacts"))
    shutil.copytree(artifacts / "tasks" / "digits", artifacts / "tasks" / "broken")
    shutil.copy(artifacts / "tasks" / "sprites-location" / "folded.onnx", artifacts / "tasks" / "broken")
    with serve(artifacts, folder) as server:
        server.wait_until("ready")
        yield server


def test_one_server_answers_two_tasks_each_by_its_own_bundle(server: Server, store: Path) -> None:
    for task in ("digits", "sprites-location"):
        response, record = server.classify(task), Bundle.load(store / "tasks" / task).record
        assert response.json()["bundle"] == record.sha256
        assert set(scores(response)) <= set(record.classes)
        assert len(scores(response)) == 5


@pytest.mark.parametrize(
    ("path", "text"),
    [("/livez", ""), ("/readyz", ""), ("/metrics", "# HELP"), ("/docs.json", '"/classify"'), ("/v1/tasks", '"digits"')],
)
def test_what_an_operator_asks_is_answered(server: Server, path: str, text: str) -> None:
    response = httpx.get(f"{server.address}{path}", timeout=10)
    assert response.status_code == 200
    assert text in response.text


def test_32_requests_at_once_are_all_answered_by_their_own_task(server: Server) -> None:
    asked = [(task, seed) for seed in range(4) for task in ("digits", "sprites-location")]
    alone = {each: scores(server.classify(*each)) for each in asked}
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda each: server.classify(*each), asked * 4))
    assert [answer.status_code for answer in answers] == [200] * 32
    for (task, seed), answer in zip(asked * 4, answers, strict=True):
        assert answer.json()["task"] == task
        assert scores(answer) == pytest.approx(alone[task, seed], abs=1e-5)


def test_faults_reach_the_sender_with_their_reason(server: Server) -> None:
    refused, unknown = server.classify("broken"), server.classify("429")
    assert (refused.status_code, unknown.status_code) == (503, 404)
    assert refused.json()["detail"].startswith("'broken': folded.onnx misses its canary's probabilities")
    assert unknown.json()["detail"] == "unknown task '429'; known: digits, sprites-location"
    text = httpx.post(f"{server.address}/classify", files={"image": b"no image"}, data={"task": "digits"}, timeout=10)
    assert text.status_code == 400


def test_the_log_says_which_task_is_not_served(server: Server) -> None:
    assert "not serving broken: 'broken': folded.onnx misses its canary's probabilities" in server.log.read_text()


@pytest.mark.skipif(not (PROC / "self" / "maps").exists(), reason="no /proc here to look into the server's memory")
def test_no_process_of_the_server_has_loaded_torch(server: Server) -> None:
    maps = [(PROC / str(pid) / "maps").read_text() for pid in family(server.process.pid)]
    assert any("onnxruntime" in text for text in maps)
    assert not any("libtorch" in text for text in maps)


def test_without_a_store_the_server_never_gets_ready_and_its_log_names_the_way_out(tmp_path: Path) -> None:
    with serve(tmp_path / "nowhere", tmp_path) as server:
        server.wait_until(f"no task in {tmp_path}/nowhere/tasks: write one with `python -m export --out {tmp_path}")
        assert not server.ready()
