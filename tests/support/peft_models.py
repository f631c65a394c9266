"""Adapters made by peft itself, on a small ViT of timm and the same ViT of transformers, and their conversion."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from export.convert import convert
from export.options import ConvertConfig
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.bundle import Bundle
from tests.support.walker import ROOT

NAME = "test_vit"
"""timm's own small ViT for tests: embed_dim 64, depth 6, hidden width 192, 160 px."""

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 192,
    "image_size": 160,
    "patch_size": 16,
}

CLASSES = 5

EQUAL = 1e-5


def images() -> Tensor:
    return torch.randn(8, 3, 160, 160, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def answers(model: torch.nn.Module) -> Tensor:
    """Probabilities (8, K)."""
    out = model.eval()(images())
    logits: Tensor = out if isinstance(out, Tensor) else out.logits
    return logits.softmax(-1)


def adapted(model: torch.nn.Module, folder: Path | None, **settings: Any) -> PeftModel:
    """`model` with a LoRA adapter that is not the identity, saved to `folder` if there is one."""
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(init_lora_weights=False, **settings))
    if folder is not None:
        tuned.save_pretrained(str(folder))
    tuned.eval()
    return tuned


def of_timm(folder: Path | None = None, **settings: Any) -> PeftModel:
    model = load_backbone(NAME, Weights("random"), CLASSES)
    randomise(model.get_classifier())
    return adapted(model, folder, **{"modules_to_save": ["head"], **settings})


def vit(**settings: Any) -> ViTForImageClassification:
    """A ViT of transformers with its own random initialisation."""
    torch.manual_seed(2)
    model = ViTForImageClassification(ViTConfig(**{**SHAPE, "num_labels": CLASSES, **settings}))
    model.train(False)
    return model


def of_transformers(folder: Path, weights: Path, **settings: Any) -> PeftModel:
    """A ViT of transformers with a LoRA adapter in `folder`, and the base model in `weights`."""
    model = vit()
    randomise(model.classifier)
    model.save_pretrained(weights)
    return adapted(model, folder, **{"modules_to_save": ["classifier"], **settings})


def config(path: Path, out: Path, **settings: Any) -> ConvertConfig:
    settings = {"source": "peft", "name": "parts", "backbone": NAME, "random_weights": True, **settings}
    return ConvertConfig(path=path, out=out, **settings)


def converted(path: Path, out: Path, **settings: Any) -> tuple[Bundle, Tensor]:
    """Convert an adapter; returns the bundle and its probabilities (8, K)."""
    given = config(path, out, **settings)
    bundle = Bundle.load(convert(given))
    return bundle, answers(restore(bundle, Weights.choose(given.backbone_weights, given.random_weights)))


def difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def run_module(line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a module of the project with arguments in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", *line]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
