"""What a plain ViT is: the conditions under which a parallel adapter folds exactly, checked in one place."""

from collections.abc import Iterator
from typing import NamedTuple

from timm.layers import LayerScale, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from mosa_deploy.errors import BackboneError


class FeedForward(NamedTuple):
    """The parts of a block that the adapter stands beside."""

    norm: nn.LayerNorm
    fc1: nn.Linear
    act: nn.Module
    fc2: nn.Linear
    layer_scale: LayerScale | None


def feed_forward(block: nn.Module) -> FeedForward:
    """The feed-forward part of a block that qualifies; `check_plain` says whether it does."""
    assert isinstance(block, Block)
    mlp, norm, scale = block.mlp, block.norm2, block.ls2
    assert isinstance(mlp, Mlp)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(mlp.fc1, nn.Linear)
    assert isinstance(mlp.fc2, nn.Linear)
    return FeedForward(norm, mlp.fc1, mlp.act, mlp.fc2, scale if isinstance(scale, LayerScale) else None)


def check_plain(model: nn.Module) -> VisionTransformer:
    """The model itself, if its blocks can take an adapter that folds exactly.

    Raises:
        BackboneError: names every block and part that does not qualify.
    """
    if not isinstance(model, VisionTransformer):
        raise BackboneError(f"{type(model).__name__} is not a timm VisionTransformer: choose a plain ViT")
    faults = [f"blocks.{i}: {fault}" for i, block in enumerate(model.blocks) for fault in _faults(block)]
    if faults:
        raise BackboneError(f"this model cannot be folded exactly: {'; '.join(faults)}; choose a plain pre-norm ViT")
    return model


def _faults(block: nn.Module) -> Iterator[str]:
    if type(block) is not Block:
        yield f"{type(block).__name__} is not timm's pre-norm Block"
        return
    mlp, norm = block.mlp, block.norm2
    if type(mlp) is not Mlp:
        yield f"mlp is {type(mlp).__name__}, not Mlp"
    elif not isinstance(mlp.norm, nn.Identity):
        yield "mlp has an inner norm"
    elif not (isinstance(mlp.fc1, nn.Linear) and isinstance(mlp.fc2, nn.Linear)):
        yield "mlp is not made of linear layers"
    elif mlp.fc1.bias is None or mlp.fc2.bias is None:
        yield "mlp has no bias"
    if not isinstance(norm, nn.LayerNorm):
        yield f"norm2 is {type(norm).__name__}, not LayerNorm"
    elif norm.weight is None or norm.bias is None:
        yield "norm2 has no affine"
    if not isinstance(block.ls2, nn.Identity | LayerScale):
        yield f"ls2 is {type(block.ls2).__name__}"
