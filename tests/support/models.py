"""Small transformers, and a function that changes their adapters."""

from collections.abc import Callable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy.adapters.attach import adapters
from mosa_deploy.backbones.load import randomise

Toy = Callable[..., VisionTransformer]


def toy_transformer(**kwargs: Any) -> VisionTransformer:
    """A small random ViT: 16 px, patches of 8, embed_dim 12, depth 2; every parameter is perturbed."""
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 5}
    model = VisionTransformer(**{**shape, **kwargs})
    randomise(model)
    return model.eval()


@torch.no_grad()
def perturb(model: torch.nn.Module, size: float = 0.3, seed: int = 1) -> None:
    """Add noise to what is tuned of every adapter, so that it is no longer the identity."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters(model):
        for parameter in (each for each in adapter.parameters() if each.requires_grad):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
