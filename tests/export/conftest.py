"""A tuned task that needs no tuning: random weights, random adapters, a canary of noise."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.export import export
from export.options import ExportConfig, FileOptions
from export.trace import trace_plain, trace_shared
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.graphs.adapter_weights import Layout
from tests.support.runs import make_run


@pytest.fixture(scope="session")
def parts_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the bundle; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "parts"
    make_run(folder)
    return folder


@pytest.fixture(scope="session")
def parts_store(tmp_path_factory: pytest.TempPathFactory, parts_run: Path) -> Path:
    """A store with that one task; tests must not change it."""
    root = tmp_path_factory.mktemp("parts-store")
    export(ExportConfig(bundle=parts_run, out=root))
    return root


@pytest.fixture(scope="session")
def calibrated_run(tmp_path_factory: pytest.TempPathFactory, parts_run: Path) -> Path:
    """The run of `parts` with images to calibrate on."""
    folder = Path(shutil.copytree(parts_run, tmp_path_factory.mktemp("calibrated") / "parts"))
    pixels = np.random.default_rng(1).integers(0, 256, (32, 160, 160, 3), dtype=np.uint8)
    np.savez_compressed(folder / "calibration.npz", images=pixels)
    return folder


@pytest.fixture(scope="session")
def format_store(tmp_path_factory: pytest.TempPathFactory, calibrated_run: Path, parts_store: Path) -> Path:
    """A store with every file of the task; tests must not change it."""
    root = Path(shutil.copytree(parts_store, tmp_path_factory.mktemp("formats") / "store"))
    export(ExportConfig(bundle=calibrated_run, out=root, files=FileOptions(precision="int8,fp16")))
    return root


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain.onnx` and `shared.onnx` of a random backbone of depth 2 and width 24, for images of 28 x 28."""
    folder = tmp_path_factory.mktemp("traced")
    model = load_backbone("vit_small_patch14_reg4_dinov2", Weights("random"), 4, 28, depth=2, embed_dim=24, num_heads=3)
    torch.manual_seed(0)
    randomise(model)
    onnx.save(trace_plain(model, "0" * 64).model, folder / "plain.onnx")
    onnx.save(trace_shared(model, Layout(BlockTopology(2, 24))), folder / "shared.onnx")
    return folder
