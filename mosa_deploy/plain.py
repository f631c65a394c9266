"""What a plain ViT is: the conditions under which a parallel adapter folds exactly, checked in one place."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import timm.layers
import torch
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


def check_plain(model: nn.Module, name: str = "this model") -> VisionTransformer:
    """The model itself, if its blocks can take an adapter that folds exactly.

    Raises:
        BackboneError: names every block and part that does not qualify.
    """
    # A subclass has parts that a task does not own, e.g. the second head of a distilled DeiT.
    if type(model) is not VisionTransformer:
        raise BackboneError(f"{type(model).__name__} is not a timm VisionTransformer: choose a plain ViT")
    faults = [*_of_blocks([tuple(_faults(block)) for block in model.blocks]), *_of_statistics(model)]
    if faults:
        raise BackboneError(f"{name} cannot be folded exactly: {'; '.join(faults)}; choose a plain pre-norm ViT")
    return model


def _of_blocks(faults: list[tuple[str, ...]]) -> Iterator[str]:
    """The faults of each block with its number; one line for three or more in a row that share theirs."""
    for _, same in groupby(range(len(faults)), key=faults.__getitem__):
        run = list(same)
        places = [f"blocks.{run[0]}-{run[-1]}"] if len(run) > 2 else [f"blocks.{i}" for i in run]
        yield from (f"{place}: {fault}" for place in places for fault in faults[run[0]])


def _of_statistics(model: nn.Module) -> Iterator[str]:
    norms = [name.removesuffix(".running_mean") for name, _ in model.named_buffers() if name.endswith(".running_mean")]
    if norms:
        yield f"{norms[0]} is a BatchNorm, whose statistics move in tuning and are not the task's"


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
    else:
        yield from _faults_of_act(mlp.act)
    # By type: a subclass may compute in another precision (LayerNormFp32) or over other dimensions (LayerNorm2d).
    if type(norm) not in (nn.LayerNorm, timm.layers.LayerNorm):
        yield f"norm2 is {type(norm).__name__}, not LayerNorm"
    elif norm.weight is None or norm.bias is None:
        yield "norm2 has no affine"
    if type(block.ls2) not in (nn.Identity, LayerScale):
        yield f"ls2 is {type(block.ls2).__name__}"


def _faults_of_act(act: nn.Module) -> Iterator[str]:
    """FFN and adapter share the activation, and the folded FFN applies it to the columns of both at once."""
    if any(True for _ in act.parameters()):
        yield f"act {act} has parameters of its own"
        return
    columns = torch.linspace(-4, 4, 8)
    parts = torch.cat([act(half.clone()) for half in columns.chunk(2)])
    if not torch.allclose(act(columns.clone()), parts):
        yield f"act {act} does not work on each channel alone"
