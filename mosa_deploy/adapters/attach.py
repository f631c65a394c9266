"""Attach adapters to a timm ViT, DINOv3 or Swin, freeze the backbone, and read or load what a task owns."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mosa_deploy.adapters.bottleneck import Adapter
from mosa_deploy.adapters.low_rank import LowRankAdapter, LowRankLinear
from mosa_deploy.adapters.parallel import ParallelAdapter
from mosa_deploy.adapters.probe import TunedModel, plain_backbone
from mosa_deploy.adapters.repadapter import ReadingLayer
from mosa_deploy.adapters.sequential import HoulsbyAdapter, PfeifferAdapter
from mosa_deploy.adapters.split_linear import SplitLinear
from mosa_deploy.adapters.ssf import Operation, ScaledLayer
from mosa_deploy.backbones.foldable import (
    Transformer,
    blocks_of,
    check_foldable,
    check_style,
    feed_forward,
    topology_of,
)
from mosa_deploy.bundles.adapter_config import PATCHES, READERS, SCALED, TARGET_SLICES, AdapterConfig, Method
from mosa_deploy.bundles.ownership import owns
from mosa_deploy.errors import BackboneError, ConfigError
from mosa_deploy.utils.seeds import derive
from mosa_deploy.utils.shapes import shape_faults, shapes_of

Model = TypeVar("Model", bound=nn.Module)


class Adapted(nn.Module):
    """A block that calls its adapter after attention and at its end."""

    def __init__(self, block: nn.Module, adapter: ParallelAdapter | PfeifferAdapter | HoulsbyAdapter) -> None:
        super().__init__()
        self.block = block
        self.adapter = adapter


class AdaptedBlock(Adapted):
    """A timm `Block` with an adapter."""

    block: Block

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        block = self.block
        attended = block.attn(block.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        h = self.adapter.after_attention(x + block.drop_path1(block.ls1(attended)))
        return self.adapter.block_output(h, block.drop_path2(block.ls2(block.mlp(block.norm2(h)))))


class AdaptedEvaBlock(Adapted):
    """A timm `EvaBlock` with an adapter; its attention turns queries and keys by the positions of their patches."""

    block: EvaBlock

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        block = self.block
        attended = block.attn(block.norm1(x), rope=rope, attn_mask=attn_mask, is_causal=is_causal)
        h = self.adapter.after_attention(x + block.drop_path1(_scaled(attended, block.gamma_1)))
        return self.adapter.block_output(h, block.drop_path2(_scaled(block.mlp(block.norm2(h)), block.gamma_2)))


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else gamma * x


class AdaptedSwinBlock(Adapted):
    """A timm `SwinTransformerBlock` with an adapter; it has no LayerScale, and attends within windows of the image."""

    block: SwinTransformerBlock

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        block = self.block
        attended = x + block.drop_path1(block._attn(block.norm1(x)))
        h = self.adapter.after_attention(attended.flatten(1, 2))
        return self.adapter.block_output(h, block.drop_path2(block.mlp(block.norm2(h)))).reshape(x.shape)


ADAPTED: dict[type[nn.Module], type[Adapted]] = {
    Block: AdaptedBlock,
    EvaBlock: AdaptedEvaBlock,
    SwinTransformerBlock: AdaptedSwinBlock,
}
"""Class of a block -> class of the same with an adapter."""


def attach(model: Model, config: AdapterConfig, seed: int = 0, *, split: bool = True) -> Model:
    """Give every block an adapter and freeze the backbone, in place, and return the model; its logits stay the same.

    With `config.blocks` only the last blocks get one. Parallel adapters share their block's activation and eps. In a
    ViT they normalise with a LayerNorm of their own, in a Swin they read norm2(h), as the FFN does. With `split` the
    adapters get their experts and can be tuned; without, they are dense, as a merged bundle holds them.

    Raises:
        BackboneError: the model has adapters already, or a block does not qualify for adapters of this style.
        ConfigError: a projection has fewer entries than `config.experts`, or there are fewer than
            `config.blocks` blocks.
    """
    if adapters(model):
        raise BackboneError("this model has adapters already: start from a plain backbone")
    plain = check_foldable(model)
    check_style(plain, config.style)
    device = next(plain.parameters()).device
    adapted_blocks = config.adapted(blocks_of(plain))
    for i, (name, block) in enumerate(blocks_of(plain).items()):
        if name not in adapted_blocks:
            continue
        generator = torch.Generator().manual_seed(derive(seed, "adapter", i))
        plain.set_submodule(name, _with_adapter(block, config, generator))
        adapted = plain.get_submodule(name)
        if split:
            for adapter in adapters(adapted):
                adapter.split_(config, generator)
        adapted.to(device).train(plain.training)
    if config.scales_patches:
        _scale(plain, (PATCHES,))
        plain.get_submodule(PATCHES).to(device)
    freeze(plain)
    return model


def _with_adapter(block: nn.Module, config: AdapterConfig, generator: torch.Generator) -> nn.Module:
    """The block itself with adapters in its layers, or an `Adapted` around it."""
    attention = block.get_submodule("attn")
    if isinstance(attention, EvaAttention):
        # Else it would take the weight of qkv, past an adapter, to join it with biases of its own.
        attention.qkv_bias_separate = True
    match config.style:
        case "low-rank":
            _attach_low_rank(block, config, generator)
            return block
        case "repadapter":
            for name in READERS:
                linear = block.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                block.set_submodule(name, ReadingLayer(linear, config, generator))
            return block
        case "ssf":
            _scale(block, SCALED)
            return block
        case _:
            return _beside(block, config, generator)


def _beside(block: nn.Module, config: AdapterConfig, generator: torch.Generator) -> Adapted:
    part = feed_forward(block)
    width, eps = part.norm.normalized_shape[0], part.norm.eps
    adapter: ParallelAdapter | PfeifferAdapter | HoulsbyAdapter
    match config.style:
        case "pfeiffer":
            adapter = PfeifferAdapter(width, config, eps, generator)
        case "houlsby":
            adapter = HoulsbyAdapter(width, config, generator)
        case _:
            adapter = ParallelAdapter(width, config, part.act, eps, generator)
            if isinstance(block, SwinTransformerBlock):
                adapter.copy_norm_(part.norm)
    return ADAPTED[type(block)](block, adapter)


def _attach_low_rank(block: nn.Module, config: AdapterConfig, generator: torch.Generator) -> None:
    """Give every linear layer that holds a target a low-rank adapter, in place."""
    for module in dict.fromkeys(TARGET_SLICES[target].module for target in TARGET_SLICES if target in config.targets):
        linear = block.get_submodule(module)
        assert isinstance(linear, nn.Linear)
        targets = [target for target in config.targets if TARGET_SLICES[target].module == module]
        block.set_submodule(module, LowRankLinear(linear, LowRankAdapter(linear, targets, config, generator)))


def _scale(part: nn.Module, names: Sequence[str]) -> None:
    """Let SSF scale the results of these operations, in place.

    Raises:
        BackboneError: one of them is of a kind that does not take it in.
    """
    for name in names:
        operation = part.get_submodule(name)
        if not isinstance(operation, Operation) or operation.weight is None:
            raise BackboneError(f"{name} is {operation}, which SSF cannot scale: choose --method repadapter or mosa")
        part.set_submodule(name, ScaledLayer(operation))


def adapters(model: nn.Module) -> list[Adapter]:
    """The adapters of `model` in the order of its blocks; those of layers count once for each target or layer."""
    return [part for part in model.modules() if isinstance(part, Adapter)]


def split_layers(model: nn.Module) -> list[SplitLinear]:
    """The split projections of `model` in the order of its blocks."""
    return [part for part in model.modules() if isinstance(part, SplitLinear)]


def set_passes(model: nn.Module, passes: int) -> None:
    """Let each of `passes` equal parts of a training batch draw an expert of its own.

    Raises:
        ConfigError: `passes` is below 1.
    """
    if passes < 1:
        raise ConfigError(f"passes {passes}: at least 1")
    for layer in split_layers(model):
        layer.passes = passes


def set_dense(model: nn.Module, dense: bool) -> None:
    """Let training use the merged adapter, as evaluation does, or draw experts again."""
    for layer in split_layers(model):
        layer.dense = dense


def set_merge_scale(model: nn.Module, scale: float) -> None:
    """Set the factor by which merging multiplies every split update."""
    for layer in split_layers(model):
        layer.merge_scale = scale


def reseed(model: nn.Module, seed: int, epoch: int) -> None:
    """Seed every layer's draw of experts from (seed, epoch, layer), so that a resumed run draws the same ones."""
    for i, layer in enumerate(split_layers(model)):
        layer.generator.manual_seed(derive(seed, "expert", epoch, i))


def freeze(model: TunedModel, method: Method = "adapter") -> None:
    """Freeze the backbone, so that only the adapters and the head are tuned; `full` and `bitfit` tune more.

    `mosa_deploy.bundles.ownership` says what each method tunes.
    """
    topology = topology_of(plain_backbone(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(owns(method, name, topology))
    for adapter in adapters(model):
        adapter.unfreeze()


def backbone_state(model: Transformer) -> dict[str, Tensor]:
    """The backbone's own tensors by timm's names, without the head and without adapters."""
    head, state = f"{topology_of(model).head}.", dict[str, Tensor]()
    for name, value in model.state_dict().items():
        if ".adapter." not in name and not name.startswith(head):
            state[name.replace(".block.", ".").replace(".layer.", ".")] = value
    return state


def task_state(model: TunedModel, method: Method = "adapter") -> dict[str, Tensor]:
    """The tensors that a task of this method owns, sorted by name; all but `full` and `bitfit` own the same of a model.

    These are the adapters `*.adapter.*`, the head `head.*` or `head.fc.*`, and the query of a probe.
    """
    state, topology = model.state_dict(), topology_of(plain_backbone(model))
    return {name: state[name] for name in sorted(state) if owns(method, name, topology)}


def load_task_state(model: TunedModel, state: dict[str, Tensor], method: Method = "adapter") -> None:
    """Load the tensors of `task_state` into a model with adapters and a head of the same shapes.

    Raises:
        BackboneError: tensors are missing, unexpected or of another shape; all of them are listed.
    """
    faults = shape_faults(shapes_of(task_state(model, method)), shapes_of(state))
    if faults:
        raise BackboneError(f"the task's tensors do not fit the model: {faults}")
    model.load_state_dict(state, strict=False)
