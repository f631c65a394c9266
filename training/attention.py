"""The attention kernel of training steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def unfused(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Let timm's attention layers write out softmax(q k^T / sqrt(d)) v in plain products, if `enabled`.

    On CPUs the backward pass of PyTorch's fused kernel is slow in bf16: a step of a ViT-S at 98 px takes 1.3 times as
    long with it. Elsewhere, and without gradients, it is the better choice.
    """
    fused = [module for module in model.modules() if enabled and getattr(module, "fused_attn", False)]
    set_fused(fused, False)
    try:
        yield
    finally:
        set_fused(fused, True)


def set_fused(layers: Sequence[nn.Module], fused: bool) -> None:
    """Choose the kernel of attention layers."""
    for layer in layers:
        vars(layer)["fused_attn"] = fused
