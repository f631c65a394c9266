"""A tuned task that needs no tuning: random weights, random adapters, a canary of noise."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.export import export
from export.options import ExportConfig
from export.trace import trace_plain, trace_shared
from mosa_deploy.adapters.attach import attach, split_layers, task_state
from mosa_deploy.backbones.load import Weights, fingerprint, load_backbone, randomise
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.preprocess import Array, Preprocess, encode, probabilities
from mosa_deploy.bundles.record import Backbone, Record
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.graphs.adapter_weights import Layout
from mosa_deploy.graphs.bank import Bank
from tests.conftest import perturb

BACKBONE = "test_vit2"
"""timm's own small ViT for tests: embed_dim 64, depth 8, hidden width 192, LayerScale, 160 px."""

TEMPERATURE = 2.5


PARALLEL = AdapterConfig(bottleneck=4, experts=3, share="none")


def make_run(
    folder: Path, weights: Weights | None = None, adapter: AdapterConfig = PARALLEL, name: str = "parts"
) -> Bundle:
    """Save a split bundle of three classes on random weights, or on those of a file."""
    model = load_backbone(BACKBONE, weights or Weights("random"))
    sha256 = fingerprint(model.state_dict())
    torch.manual_seed(0)
    model.reset_classifier(3)
    attach(model, adapter)
    perturb(model.eval())
    assert len(split_layers(model)) in (16, 32)

    def answer(images: Array) -> Array:
        with torch.inference_mode():
            return probabilities(model(torch.from_numpy(images)).numpy(), TEMPERATURE)

    noise = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), dtype=np.uint8)
    preprocess = Preprocess(size=(160, 160))
    record = Record(
        task=name,
        dataset="parts",
        backbone=Backbone(
            name=BACKBONE, source=weights.source if weights else "random", sha256=sha256, depth=8, embed_dim=64
        ),
        method="mosa" if adapter.style == "parallel" else "mosl",
        form="split",
        adapter=adapter,
        classes=("bolt", "nut", "washer"),
        preprocess=preprocess,
        temperature=TEMPERATURE,
        metrics={},
        seed=0,
        versions={},
        git_commit=None,
    )
    canary = Canary.record([encode(image) for image in noise], preprocess, answer)
    tensors = {name: value.numpy() for name, value in task_state(model).items()}
    return Bundle(record, tensors, canary).save(folder)


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
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain.onnx` and `shared.onnx` of a random backbone of depth 2 and width 24, for images of 28 x 28."""
    folder = tmp_path_factory.mktemp("traced")
    model = load_backbone("vit_small_patch14_reg4_dinov2", Weights("random"), 4, 28, depth=2, embed_dim=24, num_heads=3)
    torch.manual_seed(0)
    randomise(model)
    onnx.save(trace_plain(model, "0" * 64).model, folder / "plain.onnx")
    onnx.save(trace_shared(model, Layout(BlockTopology(2, 24))), folder / "shared.onnx")
    return folder


def noise(batch: int) -> Array:
    """Images (B, 3, 28, 28) for `traced`."""
    return np.random.default_rng(batch).standard_normal((batch, 3, 28, 28), dtype=np.float32)


def random_bank(bottleneck: int = 4, capacity: int = 3) -> Bank:
    """A bank of tasks that move the features, for `traced`."""
    bank = Bank(Layout(BlockTopology(2, 24)), bottleneck, capacity)
    for seed in range(capacity):
        rng = np.random.default_rng(seed)
        bank.write({n: rng.normal(0, 0.3, t.shape[1:]).astype(np.float32) for n, t in bank.tensors.items()})
    return bank
