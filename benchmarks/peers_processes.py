"""The servers of `benchmarks.peers`: how each is started, asked, given a new task, and ended."""

import base64
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.peers_tasks import Exported
from tests.support.load import Ask
from tests.support.service import KEY, ROOT

INSTALL = "pip install 'mosa-deploy[peers]'"

STOP_SECONDS = 30


def raw(task: str, image: int, content: bytes) -> Ask:
    """The image is the body, and the query names the task."""
    return Ask(content, "image/jpeg", task, image, path=f"/classify?task={task}")


def raw_top_1(task: str, image: int, content: bytes) -> Ask:
    """The same for our service, which answers five classes if it is not told otherwise."""
    return Ask(content, "image/jpeg", task, image, path=f"/classify?task={task}&top_k=1")


def in_form(task: str, image: int, content: bytes) -> Ask:
    """A form, as a typed API of BentoML reads it."""
    files = {"image": ("image.jpg", content, "image/jpeg")}
    request = httpx.Request("POST", "http://service/classify", files=files, data={"task": task})
    return Ask(request.read(), request.headers["content-type"], task, image)


def by_header(task: str, image: int, content: bytes) -> Ask:
    """The image is the body, and a header of Ray's names the task."""
    return Ask(content, "image/jpeg", task, image, headers=(("serve_multiplexed_model_id", task),))


def in_json(task: str, image: int, content: bytes) -> Ask:
    """JSON with the image in base64, which is what LitServe reads."""
    body = json.dumps({"task": task, "image": base64.b64encode(content).decode()}).encode()
    return Ask(body, "application/json", task, image)


@dataclass(frozen=True)
class Peer:
    """A server. All but ours are modules of `benchmarks.peer_servers`."""

    title: str
    needs: tuple[str, ...]
    """The modules that must be installed."""
    ask: Callable[[str, int, bytes], Ask]
    at_best: str
    """What `best` means."""
    module: str = ""
    variant: str = ""
    whole_models: bool = True
    """Whether each task has a whole model of its own in memory."""
    most_tasks: int | None = None
    """It is not started with more tasks than these; None if it may have any number."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variables of its process, besides those that every server has."""

    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def command(self, store: Path, port: int, precision: str, weights: Path | None) -> list[str]:
        """The command that serves a store."""
        if not self.module:
            start = "from mosa_deploy.cli import main; main()"
            address = ["--host", "127.0.0.1", "--port", str(port)]
            return [sys.executable, "-c", start, "serve", "--artifacts", str(store), *address]
        given = ["--store", str(store), "--port", str(port), "--precision", precision]
        given += ["--variant", self.variant] if self.variant else []
        given += ["--weights", str(weights.resolve())] if weights else []
        return [sys.executable, "-m", f"benchmarks.peer_servers.{self.module}", *given]

    def environment(self, folder: Path, precision: str) -> dict[str, str]:
        """The variables of its process."""
        own = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "BENTOML_HOME": str(folder / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "MOSA_ADMIN_KEYS": KEY,
            "MOSA_PRECISION": "auto" if precision == "best" else precision,
            "MOSA_DEADLINE_S": "120",
        }
        # How many threads there are is the server's to choose.
        given = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        return {**given, **own, **self.settings}

    def add(self, server: "Running", exported: Exported, name: str) -> None:
        """Give it a new task: ours by an upload, the others in the folder that they open tasks from."""
        if self.module:
            exported.add(server.store, name)
            return
        url, headers = f"{server.address}/v1/tasks/{name}", {"authorization": f"Bearer {KEY}"}
        answer = httpx.put(url, content=exported.archive(0, name).pack(), headers=headers, timeout=120)
        answer.raise_for_status()


PEERS: Mapping[str, Peer] = {
    "ours": Peer("mosa-deploy", (), raw_top_1, "MOSA_PRECISION=auto", whole_models=False),
    "ours-folded": Peer(
        "mosa-deploy, each task in the folded lane",
        (),
        raw_top_1,
        "MOSA_PRECISION=auto",
        most_tasks=8,
        settings={"MOSA_FOLDED": "*"},
    ),
    "openvino": Peer(
        "OpenVINO behind FastAPI, throughput hint",
        ("openvino",),
        raw,
        "its int8 file, the rest in the precision that OpenVINO chooses",
        "openvino_fastapi",
        "throughput",
    ),
    "openvino-latency": Peer(
        "OpenVINO behind FastAPI, latency hint",
        ("openvino",),
        raw,
        "its int8 file, the rest in the precision that OpenVINO chooses",
        "openvino_fastapi",
        "latency",
    ),
    "litserve": Peer(
        "LitServe, torch, PEFT's mixed adapters",
        ("litserve", "peft"),
        in_json,
        "bf16 by autocast",
        "litserve_peft",
        whole_models=False,
    ),
    "ray": Peer(
        "Ray Serve, multiplexed ONNX Runtime sessions",
        ("ray",),
        by_header,
        "int8 files",
        "ray_multiplexed",
    ),
    "bentoml": Peer(
        "BentoML, one ONNX Runtime session per task",
        ("bentoml",),
        in_form,
        "int8 files",
        "bentoml_sessions",
    ),
}


@dataclass(frozen=True)
class Running:
    """A server in a process of its own, with those that it started."""

    process: subprocess.Popen[bytes]
    address: str
    store: Path
    log: Path

    def family(self) -> list[psutil.Process]:
        """All its processes."""
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def memory(self) -> int:
        """Bytes of memory; what several processes share counts once."""
        total = 0
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def end_of_log(self) -> str:
        """The last line that it wrote."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:200] if lines else "it wrote nothing"


@contextmanager
def started(peer: Peer, store: Path, folder: Path, precision: str, weights: Path | None) -> Iterator[Running]:
    """Start a server on a free port, with its log in `folder`, and end all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            peer.command(store, port, precision, weights),
            cwd=ROOT,
            env=peer.environment(folder, precision),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Running(process, f"http://127.0.0.1:{port}", store, folder / "log")
    try:
        yield server
    finally:
        end(server)


def end(server: Running) -> None:
    """Tell a server to stop, and kill what is still there after a while."""
    family = server.family()
    server.process.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    server.process.wait()


def too_many(peer: Peer, graph: Path, tasks: int, allowed: float) -> str | None:
    """Why a server is not started with so many tasks: it takes fewer, or its models take more than `allowed` bytes."""
    if peer.most_tasks is not None and tasks > peer.most_tasks:
        return f"it is for at most {peer.most_tasks} tasks"
    needed = graph.stat().st_size * tasks
    if not peer.whole_models or needed <= allowed:
        return None
    return f"does not fit: {tasks} models take at least {needed / 1e9:.1f} GB, {allowed / 1e9:.1f} GB are allowed"


def asks_of(peer: Peer, names: Sequence[str], images: Sequence[bytes]) -> list[Ask]:
    """A request for every task and image, so that neighbours are of different tasks."""
    return [peer.ask(name, i, content) for i, content in enumerate(images) for name in names]
