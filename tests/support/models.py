"""A type for small transformers, and a function that changes their adapters."""

from collections.abc import Callable

import torch
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy.adapters.attach import adapters

Toy = Callable[..., VisionTransformer]


@torch.no_grad()
def perturb(model: torch.nn.Module, size: float = 0.3, seed: int = 1) -> None:
    """Add noise to every adapter, so that it is no longer the identity."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters(model):
        for parameter in adapter.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
