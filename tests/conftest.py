"""Fixtures that several rooms share: a toy transformer, a tuned run, a store."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from timm.models.vision_transformer import VisionTransformer

from export.export import export
from export.options import ExportConfig
from mosa_deploy.backbones.load import randomise
from tests.support.images import DATA
from tests.support.runs import Once
from training.config import TuneConfig
from training.tune import tune


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why a test cannot run here."""
    for item in items:
        if item.get_closest_marker("data") and not DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no image sets in {DATA}: set MOSA_TEST_DATA"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture
def toy() -> Callable[..., VisionTransformer]:
    """Make a small random ViT: 16 px, patches of 8, embed_dim 12, depth 2; every parameter is perturbed."""

    def make(**kwargs: Any) -> VisionTransformer:
        shape = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 5}
        model = VisionTransformer(**{**shape, **kwargs})
        randomise(model)
        return model.eval()

    return make


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
    """A finished run of `digits` by MoSA: one epoch on the embedded backbone, split bundle and all."""
    config = TuneConfig(task="digits", epochs=1, bottleneck=4, device="cpu")
    return once("digits", lambda out: tune(replace(config, out=out)))


@pytest.fixture(scope="session")
def sprites_run(once: Once) -> Path:
    """A finished run of `sprites-location` by the linear probe."""
    config = TuneConfig(task="sprites-location", method="linear", device="cpu")
    return once("sprites", lambda out: tune(replace(config, out=out)))


@pytest.fixture(scope="session")
def store(once: Once, digits_run: Path, sprites_run: Path) -> Path:
    """A store with both tasks; tests must not change it."""

    def make(root: Path) -> None:
        for run in (digits_run, sprites_run):
            export(ExportConfig(bundle=run, out=root))

    return once("store", make)
