"""Fixtures of this room: seeded tests, a small bundle."""

import numpy as np
import pytest
import torch

from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.bundle import Bundle, Tensors
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.record import Backbone, Record


@pytest.fixture(autouse=True)
def seeded() -> None:
    """No test depends on which ran before it."""
    torch.manual_seed(0)


def small_bundle() -> Bundle:
    """A split bundle of one block: embed_dim 3, bottleneck 2, two experts, `up` split."""
    shapes: dict[str, tuple[int, ...]] = {
        "head.weight": (2, 3),
        "head.bias": (2,),
        "blocks.0.adapter.norm.weight": (3,),
        "blocks.0.adapter.norm.bias": (3,),
        "blocks.0.adapter.down.weight": (2, 3),
        "blocks.0.adapter.down.bias": (2,),
        "blocks.0.adapter.up.weight": (3, 2),
        "blocks.0.adapter.up.base": (3, 2),
        "blocks.0.adapter.up.bias": (2, 3),
    }
    random = np.random.default_rng(0)
    tensors: Tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["blocks.0.adapter.up.owner"] = np.array([[0, 1], [1, 0], [0, 1]], dtype=np.uint8)
    record = Record(
        task="toy",
        dataset="digits",
        backbone=Backbone(name="vit_toy", source="random", sha256="ab" * 32, depth=1, embed_dim=3),
        method="mosa",
        form="split",
        adapter=AdapterConfig(bottleneck=2, experts=2),
        classes=("río", "sea"),
        preprocess=Preprocess(size=(8, 8)),
        temperature=1.5,
        metrics={"accuracy": 0.5},
        seed=3,
        versions={"python": "3"},
        git_commit=None,
    )
    canary = Canary((b"first", b"second image"), np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32))
    return Bundle(record, tensors, canary)


@pytest.fixture
def bundle() -> Bundle:
    """See `small_bundle`."""
    return small_bundle()
