"""The service's app in this process: tests start it, change it and read its answers."""

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.preprocess import Array
from serving.app import attach, create_app
from serving.local_backend import LocalBackend
from serving.settings import Settings
from tests.support.tasks import TaskMaker

Classify = Callable[..., Any]

Scores = dict[str, float]


ADMIN = {"authorization": "Bearer root-key"}


@contextmanager
def running(store: Path | str, **settings: Any) -> Iterator[TestClient]:
    """Run the app on a store in this process; yields a client."""
    given = {"artifacts": str(store), "threads": 1, "max_wait_ms": 0.5, "max_batch": 8, **settings}
    chosen = Settings.model_validate(given)
    backend = LocalBackend(chosen)
    try:
        app = create_app(chosen)
        attach(app, backend)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client
    finally:
        backend.stop()


@contextmanager
def changing(store: Path | str, **settings: Any) -> Iterator[TestClient]:
    """Run the app on a store; yields a client that may change tasks."""
    with running(store, admin_keys="root-key", **settings) as client:
        client.headers.update(ADMIN)
        yield client


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serve an app on a port of this machine; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def behind_prefix(client: TestClient) -> Iterator[str]:
    """Serve the app of a client below a prefix, as behind a proxy; yields the address."""
    with listening(Starlette(routes=[Mount("/vision", client.app)])) as address:
        yield f"{address}/vision"


CPU = ("onnxruntime-cpu", "fp32")

GROWTH = 300 << 20
"""Bytes by which the process may grow: one image of the largest size, and what the allocator keeps."""


def backend_of(client: TestClient) -> LocalBackend:
    """The backend behind a client."""
    backend = client.app.state.backend  # type: ignore[attr-defined] # starlette calls any app an ASGIApp
    assert isinstance(backend, LocalBackend)
    return backend


def scores(response: Any) -> Scores:
    """Label -> score, in the order of the response."""
    assert response.status_code == 200, response.text
    return {entry["label"]: entry["score"] for entry in response.json()["predictions"]}


def named(archive: Archive, row: "np.typing.NDArray[np.float32]") -> Scores:
    """Label -> probability, from one row of reference probabilities (K,)."""
    return dict(zip(archive.bundle().record.classes, map(float, row), strict=True))


def put(client: TestClient, name: str, archive: Archive | bytes, **query: str) -> Any:
    content = archive if isinstance(archive, bytes) else archive.pack()
    return client.put(f"/v1/tasks/{name}", content=content, params=query)


def top(client: TestClient, task: str, image: bytes) -> tuple[str, str]:
    """The label with the highest score, and the digest of the bundle that answered."""
    answer = client.post("/classify", files={"image": image}, data={"task": task, "top_k": "1"})
    (label,) = scores(answer)
    return label, answer.json()["bundle"]


def maker_on(root: Path, maker: TaskMaker) -> TaskMaker:
    """A copy of the maker that writes to another folder."""
    return TaskMaker(root, maker.name, maker.images)


def plans(client: TestClient) -> dict[str, tuple[str, str]]:
    """Task -> (runtime, precision)."""
    return {each["task"]: (each["runtime"], each["precision"]) for each in client.get("/v1/tasks").json()["tasks"]}


@dataclass(frozen=True)
class Reference:
    """The expected answers of tasks: the probabilities of their folded graphs, run alone."""

    maker: TaskMaker
    archives: Mapping[str, Archive]
    offline: Mapping[str, Array]

    def check(self, client: TestClient, task: str, archive: Archive | None = None, atol: float = 1e-5) -> None:
        """Compare the service's answers on all images of the maker. `archive` is the expected version, if it is new."""
        rows = self.offline[task] if archive is None else self.maker.offline(archive)
        for image, row in zip(self.maker.images, rows, strict=True):
            answer = client.post("/classify", files={"image": image}, data={"task": task, "top_k": "99"})
            assert scores(answer) == pytest.approx(named(archive or self.archives[task], row), abs=atol)


def warnings(said: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in said.records if record.levelno == logging.WARNING]


def memory() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def passes(client: TestClient) -> Iterator[list[int]]:
    """The sizes of the batches that run meanwhile."""
    sizes: list[int] = []
    batcher = backend_of(client).batcher
    before, batcher.observe = batcher.observe, lambda items: sizes.append(len(items))
    try:
        yield sizes
    finally:
        batcher.observe = before
