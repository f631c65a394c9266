"""Which backbones qualify: the conditions under which a parallel adapter folds exactly, checked in one place.

    timm's class          of                       its blocks              LayerScale of the FFN
    VisionTransformer     ViT, DeiT, DINOv2, ...   Block                   ls2.gamma
    Eva                   DINOv3                   EvaBlock                gamma_2
    SwinTransformer       Swin                     SwinTransformerBlock    none

An `Eva` is a ViT whose attention turns queries and keys by the positions of their patches. Outside of attention it
computes the same, so what holds of a ViT's FFN holds of its FFN.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import timm.layers
import torch
from timm.layers import LayerScale, Mlp
from timm.models.eva import Eva, EvaBlock
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from mosa_deploy.backbones.names import DEFAULT, DINOV3
from mosa_deploy.bundles.adapter_config import SWIN_ADVICE, Style
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.errors import BackboneError

Vit = VisionTransformer | Eva
"""Classes whose tokens are one sequence from end to end: class token, registers, patches."""

Transformer = Vit | SwinTransformer
"""The timm classes that qualify; their subclasses do not."""

Model = TypeVar("Model", bound=Transformer)

AnyBlock = Block | EvaBlock | SwinTransformerBlock

BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    VisionTransformer: Block,
    Eva: EvaBlock,
    SwinTransformer: SwinTransformerBlock,
}
"""Model class -> class that all of its blocks must have."""

WAY_OUT = f"choose a plain pre-norm ViT, such as {DEFAULT} or {DINOV3}, or a Swin"

POST_NORM = ("SwinTransformerV2", "SwinTransformerV2Cr")
"""Classes whose blocks normalise what the FFN has written."""


class FeedForward(NamedTuple):
    """The FFN of a block with its norm and LayerScale, as the fold needs them, whatever its class calls them."""

    norm: nn.LayerNorm
    fc1: nn.Linear
    act: nn.Module
    fc2: nn.Linear
    gamma: nn.Parameter | None
    """What LayerScale multiplies the FFN's output with, if there is one."""


def feed_forward(block: nn.Module) -> FeedForward:
    """The FFN of a block that `check_foldable` accepts."""
    assert isinstance(block, AnyBlock)
    mlp, norm = block.mlp, block.norm2
    assert isinstance(mlp, Mlp)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(mlp.fc1, nn.Linear)
    assert isinstance(mlp.fc2, nn.Linear)
    scale = getattr(block, "ls2", None)
    gamma = block.gamma_2 if isinstance(block, EvaBlock) else scale.gamma if isinstance(scale, LayerScale) else None
    return FeedForward(norm, mlp.fc1, mlp.act, mlp.fc2, gamma)


def drop_layer_scale(block: nn.Module) -> None:
    """Take the LayerScale of a block's FFN away, in place, where the FFN itself has absorbed it."""
    if isinstance(block, EvaBlock):
        block.gamma_2 = None
    elif isinstance(block, Block):
        block.ls2 = nn.Identity()


def topology_of(model: Transformer) -> BlockTopology:
    """The names and widths of a model's blocks, with adapters or without."""
    if not isinstance(model, SwinTransformer):
        return BlockTopology(len(model.blocks), model.embed_dim)
    stages = tuple(len(list(stage.get_submodule("blocks").children())) for stage in model.layers.children())
    return BlockTopology(sum(stages), model.embed_dim, stages)


def blocks_of(model: Transformer) -> dict[str, nn.Module]:
    """The blocks of a model by name, with adapters or without."""
    return {name: model.get_submodule(name) for name in topology_of(model).blocks}


def image_size(model: Transformer) -> tuple[int, int]:
    """(H, W) in pixels of the images that a model takes."""
    embed: Any = model.patch_embed
    height, width = embed.img_size
    return height, width


def check_class(model: nn.Module, name: str = "this model") -> Transformer:
    """The model itself, if its class qualifies; `name` is what errors call it.

    Raises:
        BackboneError: it is of another class.
    """
    kind = type(model).__name__
    if kind in POST_NORM:
        raise BackboneError(
            f"{name} is a {kind}, whose norm2 normalises what the FFN has written: FFN and adapter share no input;"
            f" {WAY_OUT}"
        )
    # The exact type: a subclass may have parts that no task owns, such as the second head of a distilled DeiT.
    if type(model) not in BLOCKS:
        raise BackboneError(f"{name} is a {kind}, not a plain ViT or Swin: {WAY_OUT}")
    assert isinstance(model, Transformer)
    return model


def check_foldable(model: nn.Module, name: str = "this model") -> Transformer:
    """The model itself, if a parallel adapter folds exactly into each of its blocks.

    Every block must be timm's own pre-norm class. Its Mlp must have biases, no inner norm, and an activation that works
    on each channel alone; its norm2 must be a LayerNorm with an affine. What does not belong to the blocks must be a
    parameter of the graph too.

    Raises:
        BackboneError: a block does not qualify; every such block and part is named.
    """
    plain = check_class(model, name)
    faults = {block: tuple(_block_faults(part, BLOCKS[type(plain)])) for block, part in blocks_of(plain).items()}
    found = [*_grouped(faults), *_batch_norm_faults(plain), *_position_faults(plain)]
    if found:
        raise BackboneError(f"{name} cannot be folded exactly: {'; '.join(found)}; {WAY_OUT}")
    return plain


def check_style(model: Transformer, style: Style) -> None:
    """Raises BackboneError if the model's blocks cannot have adapters of this style."""
    if isinstance(model, SwinTransformer) and style != "parallel":
        raise BackboneError(f"{style} adapters: {SWIN_ADVICE}")
    if style == "ssf" and any(name.endswith(".q_bias") for name, _ in model.named_parameters()):
        raise BackboneError(
            "ssf: this backbone adds the biases of q and v after qkv, where no scale reaches them: choose --method"
            " repadapter or mosa"
        )


def _grouped(faults: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """The faults of each block; three or more neighbours of a stage with the same faults are named as a range."""
    for (stage, shared), same in groupby(faults, key=lambda name: (name.rpartition(".")[0], faults[name])):
        run = [name.rpartition(".")[2] for name in same]
        places = [f"{run[0]}-{run[-1]}"] if len(run) > 2 else run
        yield from (f"{stage}.{place}: {fault}" for place in places for fault in shared)


def _batch_norm_faults(model: nn.Module) -> Iterator[str]:
    norms = [name.removesuffix(".running_mean") for name, _ in model.named_buffers() if name.endswith(".running_mean")]
    if norms:
        yield f"{norms[0]} is a BatchNorm, whose statistics change in tuning but do not belong to the task"


def _position_faults(model: nn.Module) -> Iterator[str]:
    learned = [name for name, _ in model.named_parameters() if name.startswith("rope.")]
    if learned:
        yield f"{learned[0]} are learned angles of positions, and a graph holds only the sines that come of them"


def _block_faults(block: nn.Module, wanted: type[nn.Module]) -> Iterator[str]:
    if type(block) is not wanted:
        yield f"{type(block).__name__} is not timm's pre-norm {wanted.__name__}"
        return
    assert isinstance(block, AnyBlock)
    mlp, norm, scale = block.mlp, block.norm2, getattr(block, "ls2", None)
    if type(mlp) is not Mlp:
        yield f"mlp is {type(mlp).__name__}, not Mlp"
    elif not isinstance(mlp.norm, nn.Identity):
        yield "mlp has an inner norm"
    elif not (isinstance(mlp.fc1, nn.Linear) and isinstance(mlp.fc2, nn.Linear)):
        yield "mlp is not made of linear layers"
    elif mlp.fc1.bias is None or mlp.fc2.bias is None:
        yield "mlp has no bias"
    else:
        yield from _activation_faults(mlp.act)
    # The exact type: subclasses compute in another precision (LayerNormFp32) or over other dimensions (LayerNorm2d).
    if type(norm) not in (nn.LayerNorm, timm.layers.LayerNorm):
        yield f"norm2 is {type(norm).__name__}, not LayerNorm"
    elif norm.weight is None or norm.bias is None:
        yield "norm2 has no affine"
    if type(scale) not in (type(None), nn.Identity, LayerScale):
        yield f"ls2 is {type(scale).__name__}"


def _activation_faults(act: nn.Module) -> Iterator[str]:
    """FFN and adapter share the activation, and the folded FFN applies it to the channels of both at once."""
    if any(True for _ in act.parameters()):
        yield f"act {act} has parameters of its own"
        return
    columns = torch.linspace(-4, 4, 8)
    parts = torch.cat([act(half.clone()) for half in columns.chunk(2)])
    if not torch.allclose(act(columns.clone()), parts):
        yield f"act {act} does not work on each channel alone"
