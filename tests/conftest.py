"""Fixtures that several rooms share: a toy transformer, a tuned run, a store, and a service of tasks without tuning."""

import gc
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from filelock import FileLock
from timm.models.vision_transformer import VisionTransformer

from export.export import export
from export.options import ExportConfig
from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.store_layout import StoreLayout
from tests.support.graphs import trace_small
from tests.support.images import DATA
from tests.support.models import toy_transformer
from tests.support.runs import Once
from tests.support.tasks import TaskMaker, Traced
from training.config import TuneConfig
from training.tune import tune

if TYPE_CHECKING:
    from fastapi.testclient import TestClient


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why a test cannot run here."""
    for item in items:
        if item.get_closest_marker("data") and not DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no image sets in {DATA}: set MOSA_TEST_DATA"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of the garbage collector's rounds, which were a fifth of a trace's time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter free it at the end, else extensions report leaks."""
    gc.unfreeze()


@pytest.fixture
def toy() -> Callable[..., VisionTransformer]:
    """Makes a small random ViT; see `toy_transformer`."""
    return toy_transformer


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder once for all processes of a test run: the first makes it, the others wait and read."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, make: Callable[[Path], Any]) -> Path:
        folder, aside = root / name, root / f"{name}.part"
        with FileLock(root / f"{name}.lock"):
            if not folder.exists():
                make(aside)
                aside.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def digits_run(once: Once) -> Path:
    """A finished run of `digits` by MoSA: one epoch on 240 images on the embedded backbone, split bundle and all."""
    config = TuneConfig(task="digits", shots=24, epochs=1, batch_size=8, bottleneck=4, device="cpu")
    return once("digits", lambda out: tune(replace(config, out=out)))


@pytest.fixture(scope="session")
def sprites_run(once: Once) -> Path:
    """A finished run of `sprites-location` by the linear probe, on 160 images."""
    config = TuneConfig(task="sprites-location", method="linear", shots=10, device="cpu")
    return once("sprites", lambda out: tune(replace(config, out=out)))


@pytest.fixture(scope="session")
def traced(once: Once) -> Path:
    """The graphs of `trace_small`; tests must not change them."""
    return once("traced", trace_small)


@pytest.fixture(scope="session")
def traced_store(once: Once) -> Traced:
    """Gives a store of the graphs of a backbone, which is random but for the embedded one; tests must not change it."""
    return lambda name: once(f"traced-{name}", partial(TaskMaker, name=name))


@pytest.fixture(scope="session")
def store(once: Once, traced_store: Traced, digits_run: Path, sprites_run: Path) -> Path:
    """A store with both tasks; tests must not change it."""

    def make(root: Path) -> None:
        shutil.copytree(traced_store(EMBEDDED), root)
        for run in (digits_run, sprites_run):
            export(ExportConfig(bundle=run, out=root))

    return once("store", make)


METHODS = {"birds": "mosa", "cracks": "mosa", "fields": "linear", "fields.b": "linear", "grains": "lora"}


@pytest.fixture(scope="session")
def maker(once: Once, traced_store: Traced) -> TaskMaker:
    """Makes tasks on the embedded backbone; its store has a few, and tests must not change it."""

    def make(root: Path) -> None:
        maker = TaskMaker(Path(shutil.copytree(traced_store(EMBEDDED), root)))
        for seed, (name, method) in enumerate(METHODS.items()):
            maker.store(maker.make(name, seed, method=method))

    return TaskMaker(once("made", make))


@pytest.fixture(scope="session")
def styled_store(once: Once, maker: TaskMaker) -> Path:
    """The maker's store with the shared graphs of SSF and RepAdapters too; tests must not change it."""

    def make(root: Path) -> None:
        styled = TaskMaker(Path(shutil.copytree(maker.root, root)))
        for method in ("ssf", "repadapter"):
            styled.make("traced", method=method)

    return once("styled-store", make)


@pytest.fixture(scope="session")
def archives(maker: TaskMaker) -> Mapping[str, Archive]:
    """The tasks of the maker's store, by name."""
    return {name: Archive.of(StoreLayout(maker.root).task(name)) for name in METHODS}


@pytest.fixture(scope="session")
def newer(maker: TaskMaker) -> Archive:
    """Another version of `birds`: it says class i + 9 of image i."""
    return maker.make("birds", 9)


@pytest.fixture
def copied(maker: TaskMaker, archives: Mapping[str, Archive], tmp_path: Path) -> Path:
    """A store of one's own."""
    return Path(shutil.copytree(maker.root, tmp_path / "store"))


@pytest.fixture(scope="module")
def client(maker: TaskMaker, archives: Mapping[str, Archive]) -> "Iterator[TestClient]":
    """The service with all tasks, which nobody may change."""
    # Tests of training and of GPUs run without the service's packages.
    from tests.support.app import running

    with running(maker.root) as client:
        yield client


@pytest.fixture
def admin(copied: Path) -> "Iterator[TestClient]":
    """The service on a store of one's own, by one who may change it."""
    from tests.support.app import changing

    with changing(copied) as client:
        yield client


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the service says."""
    caplog.set_level(logging.INFO, "mosa_deploy.serving")
    return caplog
