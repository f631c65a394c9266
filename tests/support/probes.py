"""Probes on small random backbones: their bundles, and the torch models that those come from."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mosa_deploy.adapters.attach import task_state
from mosa_deploy.adapters.probe import TunedModel, with_features
from mosa_deploy.adapters.restore import describe_backbone
from mosa_deploy.adapters.save import save_bundle
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.probe_features import Features
from mosa_deploy.bundles.record import Record
from tests.support.runs import BACKBONE
from tests.support.tasks import picture

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "depth": 5}),
    "pooled class token": ("vit_base_patch16_224", {"img_size": 32, "depth": 2, "global_pool": "avg"}),
    "DINOv3": ("vit_small_patch16_dinov3", {"img_size": 32, "depth": 3}),
    "no class token": ("vit_tinyd6_patch4_32", {"img_size": 8, "depth": 3}),
}
"""Name -> timm's name of a backbone, and its arguments."""

WIDTH, CLASSES = 24, 4

SCALES = {"head.weight": 0.05, "head.bias": 1.0, "query": 3.0}
"""The logits of a random network vary little: in eight bits they need a bias."""


def make_probe(kind: str, features: Features, seed: int = 0) -> tuple[Bundle, TunedModel]:
    """A probe with a random head, and its torch model."""
    name, kwargs = KINDS[kind]
    model = load_backbone(name, Weights("random"), embed_dim=WIDTH, num_heads=3, **kwargs)
    backbone = describe_backbone(name, "random", model)
    torch.manual_seed(seed)
    probe = with_features(model, features, CLASSES).eval()
    for part, value in task_state(probe).items():
        value.copy_(torch.randn(value.shape) * (3 if part == "query" else 1))
    record = Record(
        task=f"{features.replace('+', '-')}-{seed}",
        dataset="folder",
        backbone=backbone,
        method="attentive" if features == "attended" else "linear",
        features=features,
        form="merged",
        adapter=None,
        classes=tuple("abcd"),
        preprocess=Preprocess(size=(kwargs["img_size"], kwargs["img_size"])),
        temperature=1.0,
        metrics={},
        seed=seed,
        versions={},
        git_commit=None,
    )
    tensors = {part: value.detach().numpy().copy() for part, value in task_state(probe).items()}
    return Bundle(record, tensors, Canary((), np.empty((0, CLASSES), np.float32))), probe


def make_probe_run(folder: Path, features: Features) -> Bundle:
    """Save a probe of three classes on random weights of timm's ViT for tests, with images to calibrate on."""
    probe = with_features(load_backbone(BACKBONE, Weights("random")), features, 3).eval()
    generator = torch.Generator().manual_seed(0)
    for part, value in task_state(probe).items():
        value.copy_(torch.randn(value.shape, generator=generator) * SCALES[part])
    images = [picture(seed) for seed in range(4)]
    classes = ("bolt", "nut", "washer")
    bundle = save_bundle(
        probe, None, folder, task="parts", classes=classes, images=images, backbone=BACKBONE, source="random"
    )
    pixels = np.random.default_rng(1).integers(0, 256, (32, 160, 160, 3), dtype=np.uint8)
    np.savez_compressed(folder / "calibration.npz", images=pixels)
    return bundle
