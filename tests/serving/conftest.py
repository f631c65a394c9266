"""A store of tasks that need no tuning, the app on it in this process, and pictures to ask about."""

import io
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from benchmarks.serving_tasks import TaskMaker
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.store_layout import StoreLayout
from serving.app import attach, create_app
from serving.local_backend import LocalBackend
from serving.settings import Settings
from tests.conftest import Once
from tests.host_gpu import HostGpu

Ask = Callable[..., Any]
Scores = dict[str, float]

ADMIN = {"authorization": "Bearer root-key"}


def picture(seed: int = 0, mode: str = "RGB", kind: str = "png") -> bytes:
    """A picture of 48 x 40 with coarse structure, as a file."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC).convert(mode).save(buffer, format=kind)
    return buffer.getvalue()


METHODS = {"birds": "mosa", "cracks": "mosa", "fields": "linear", "fields.b": "linear", "grains": "lora"}


def make_tasks(root: Path) -> None:
    """A store of a few tasks on the embedded backbone."""
    maker = TaskMaker(root)
    for seed, (name, method) in enumerate(METHODS.items()):
        maker.store(maker.make(name, seed, method=method))


@pytest.fixture(scope="session")
def maker(once: Once) -> TaskMaker:
    """Makes tasks on the embedded backbone; its store has a few, and tests must not change it."""
    return TaskMaker(once("made", make_tasks))


@pytest.fixture(scope="session")
def archives(maker: TaskMaker) -> Mapping[str, Archive]:
    """The tasks of the maker's store, by name."""
    return {name: Archive.of(StoreLayout(maker.root).task(name)) for name in METHODS}


@pytest.fixture(scope="session")
def offline(maker: TaskMaker, archives: Mapping[str, Archive]) -> Mapping[str, np.typing.NDArray[np.float32]]:
    """The reference: each task's probabilities (n, K) of the maker's images, by its folded graph alone."""
    return {name: maker.offline(archive) for name, archive in archives.items()}


@pytest.fixture(scope="session")
def newer(maker: TaskMaker) -> Archive:
    """Another version of `birds`: it says class i + 9 of image i."""
    return maker.make("birds", 9)


@pytest.fixture
def copied(maker: TaskMaker, archives: Mapping[str, Archive], tmp_path: Path) -> Path:
    """A store of one's own."""
    return Path(shutil.copytree(maker.root, tmp_path / "store"))


@pytest.fixture
def shared(copied: Path) -> Path:
    """The shared graph of the store."""
    (folder,) = (copied / "backbones").iterdir()
    return folder / "shared.onnx"


@contextmanager
def running(store: Path | str, **settings: Any) -> Iterator[TestClient]:
    """The app on a store, in this process."""
    given = {"artifacts": str(store), "threads": 1, "max_wait_ms": 0.5, "max_batch": 8, **settings}
    chosen = Settings.model_validate(given)
    engine = LocalBackend(chosen)
    try:
        app = create_app(chosen)
        attach(app, engine)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client
    finally:
        engine.stop()


def engine_of(client: TestClient) -> LocalBackend:
    """The engine behind a client."""
    engine = client.app.state.backend  # type: ignore[attr-defined] # starlette calls any app an ASGIApp
    assert isinstance(engine, LocalBackend)
    return engine


Running = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture(scope="module")
def client(maker: TaskMaker, archives: Mapping[str, Archive]) -> Iterator[TestClient]:
    """The service with all tasks, which nobody may change."""
    with running(maker.root) as client:
        yield client


@pytest.fixture
def admin(copied: Path) -> Iterator[TestClient]:
    """The service on a store of one's own, by one who may change it."""
    with running(copied, admin_keys="root-key") as client:
        client.headers.update(ADMIN)
        yield client


@pytest.fixture
def ask(client: TestClient) -> Ask:
    """Classify a file and return the response."""

    def classify(content: bytes, task: str, **form: str) -> Any:
        return client.post("/classify", files={"image": ("some.png", content)}, data={"task": task, **form})

    return classify


def scores(response: Any) -> Scores:
    """Label -> score of a response, in the order of the answer."""
    assert response.status_code == 200, response.text
    return {entry["label"]: entry["score"] for entry in response.json()["predictions"]}


def named(archive: Archive, row: "np.typing.NDArray[np.float32]") -> Scores:
    """Label -> probability of one row of a reference."""
    return dict(zip(archive.bundle().record.classes, map(float, row), strict=True))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> HostGpu:
    """A GPU of numpy with its TensorRT."""
    made = HostGpu()
    made.install(monkeypatch)
    return made


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the service says."""
    caplog.set_level(logging.INFO, "mosa_deploy.serving")
    return caplog
