"""Small traced graphs and inputs for them: tasks with split adapters, banks and noise images."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from export.trace import trace_plain, trace_shared
from mosa_deploy.adapters.attach import attach, task_state
from mosa_deploy.backbones.foldable import Transformer, feed_forward
from mosa_deploy.backbones.load import Weights, fingerprint, load_backbone, randomise
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.preprocess import Array, Preprocess
from mosa_deploy.bundles.record import Backbone, Record
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.graphs.adapter_weights import Layout
from mosa_deploy.graphs.bank import Bank, BankScales
from tests.support.models import perturb

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3}


def trace_small(folder: Path) -> None:
    """Write `plain.onnx` and `shared.onnx` of a random backbone of depth 2 and width 24, for images of 28 x 28."""
    folder.mkdir()
    model = load_backbone("vit_small_patch14_reg4_dinov2", Weights("random"), 4, 28, **SMALL)
    torch.manual_seed(0)
    randomise(model)
    onnx.save(trace_plain(model, "0" * 64).model, folder / "plain.onnx")
    onnx.save(trace_shared(model, Layout(BlockTopology(2, 24))), folder / "shared.onnx")


def make_task(name: str, adapter: AdapterConfig | None, seed: int = 1, **kwargs: Any) -> tuple[Bundle, Transformer]:
    """A task with split adapters on random weights, and its torch model."""
    model = load_backbone(name, Weights("random"), **SMALL, **kwargs)
    sha256, hidden = fingerprint(model.state_dict()), feed_forward(model.get_submodule("blocks.0")).fc1.out_features
    torch.manual_seed(seed)
    model.reset_classifier(4)
    if adapter:
        attach(model, adapter, seed)
        perturb(model, seed=seed)
    record = Record(
        task="parts",
        dataset="parts",
        backbone=Backbone(name=name, source="random", sha256=sha256, depth=2, embed_dim=24, hidden=hidden),
        method="mosa" if adapter else "linear",
        form="split" if adapter else "merged",
        adapter=adapter,
        classes=tuple("abcd"),
        preprocess=Preprocess(size=(32, 32)),
        temperature=1.0,
        metrics={},
        seed=0,
        versions={},
        git_commit=None,
    )
    tensors = {key: value.detach().numpy() for key, value in task_state(model.eval()).items()}
    return Bundle(record, tensors, Canary((), np.empty((0, 4), np.float32))), model


def noise(batch: int = 3, side: int = 28) -> Array:
    """Images (B, 3, side, side)."""
    return np.random.default_rng(batch).standard_normal((batch, 3, side, side), dtype=np.float32)


def random_bank(bottleneck: int = 4, capacity: int = 3, scales: BankScales | None = None) -> Bank:
    """A bank of random tasks whose adapters change the features, for the fixture `traced`."""
    bank = Bank(Layout(BlockTopology(2, 24)), bottleneck, capacity, scales=scales)
    for seed in range(capacity):
        rng = np.random.default_rng(seed)
        bank.write({n: rng.normal(0, 0.3, t.shape[1:]).astype(np.float32) for n, t in bank.tensors.items()})
    return bank
