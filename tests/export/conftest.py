"""A tuned task that needs no tuning: random weights, random adapters, a canary of noise."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from export.export import export
from export.options import ExportConfig, FileOptions
from tests.support.runs import Once, make_run


@pytest.fixture(scope="session")
def parts_run(once: Once) -> Path:
    """The folder of the bundle; tests must not change it."""
    return once("parts", make_run)


@pytest.fixture(scope="session")
def parts_store(once: Once, parts_run: Path) -> Path:
    """A store with that one task; tests must not change it."""
    return once("parts-store", lambda root: export(ExportConfig(bundle=parts_run, out=root)))


@pytest.fixture(scope="session")
def calibrated_run(once: Once, parts_run: Path) -> Path:
    """The run of `parts` with images to calibrate on."""

    def make(folder: Path) -> None:
        shutil.copytree(parts_run, folder)
        pixels = np.random.default_rng(1).integers(0, 256, (32, 160, 160, 3), dtype=np.uint8)
        np.savez_compressed(folder / "calibration.npz", images=pixels)

    return once("calibrated", make)


@pytest.fixture(scope="session")
def format_store(once: Once, calibrated_run: Path, parts_store: Path) -> Path:
    """A store with every file of the task; tests must not change it."""

    def make(root: Path) -> None:
        shutil.copytree(parts_store, root)
        export(ExportConfig(bundle=calibrated_run, out=root, files=FileOptions(precision="int8,fp16")))

    return once("formats", make)
