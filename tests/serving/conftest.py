"""A store of tasks that need no tuning, the app on it in this process, and pictures to ask about."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.store_layout import StoreLayout
from tests.support.app import Classify, Reference, changing, running
from tests.support.host_gpu import HostGpu
from tests.support.runs import Once
from tests.support.tasks import TaskMaker

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
def reference(
    maker: TaskMaker, archives: Mapping[str, Archive], offline: Mapping[str, np.typing.NDArray[np.float32]]
) -> Reference:
    """Checks what tasks answer."""
    return Reference(maker, archives, offline)


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


@pytest.fixture(scope="module")
def client(maker: TaskMaker, archives: Mapping[str, Archive]) -> Iterator[TestClient]:
    """The service with all tasks, which nobody may change."""
    with running(maker.root) as client:
        yield client


@pytest.fixture
def admin(copied: Path) -> Iterator[TestClient]:
    """The service on a store of one's own, by one who may change it."""
    with changing(copied) as client:
        yield client


@pytest.fixture
def ask(client: TestClient) -> Classify:
    """Classify a file and return the response."""

    def classify(content: bytes, task: str, **form: str) -> Any:
        return client.post("/classify", files={"image": ("some.png", content)}, data={"task": task, **form})

    return classify


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
