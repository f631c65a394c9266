"""Fold: a merged adapter becomes part of the backbone's own weights, and a plain timm model comes out.

Low-rank updates, RepAdapters and SSF go into the weight and bias of their layer, whose shapes stay: see
`LowRankLinear`, `ReadingLayer` and `ScaledLayer`.

A parallel adapter and the FFN read the same normalised h, so norm2's affine is absorbed by what reads it, and the FFN
is widened from M to M + r. With g2, be2 the affine of norm2, ga, bea that of the adapter's norm (in a Swin the same),
ls2 the LayerScale (gamma_2 of an Eva, 1 where there is none) and s the scale:

    fc1' = [ W1 diag(g2) ; D diag(ga) ]     b1' = [ b1 + W1 be2 ; d + D bea ]
    fc2' = [ ls2 * W2 , s * U ]             b2' = ls2 * b2 + s * u

Nothing is divided, so a zero in g2 is harmless. Afterwards norm2 = (1, 0) and ls2 = 1. The modules stay, so the state
dict loads strictly into the unmodified timm class, created with `mlp_ratio=widened_ratio(...)`. In a Swin, whose stages
differ in width, `mlp_ratio` is a tuple with one ratio per stage. (An attention pool, `global_pool="map"`, takes its
width from the same ratio: the logits are just as exact, but timm's class would have another shape.)

`mosa_deploy.graphs.fold` does the same with numpy. The two are written independently, so that each checks the other.
"""

import copy

import torch
from torch import Tensor, nn

from mosa_deploy.adapters.adapted_layer import AdaptedLayer
from mosa_deploy.adapters.attach import Adapted, adapters
from mosa_deploy.adapters.parallel import ParallelAdapter
from mosa_deploy.backbones.foldable import Model, blocks_of, check_foldable, feed_forward
from mosa_deploy.errors import BackboneError
from mosa_deploy.utils.affine import absorb_norm


def widened_ratio(hidden: int, embed_dim: int) -> float:
    """The `mlp_ratio` with which timm's `int(embed_dim * mlp_ratio)` is `hidden` in spite of rounding."""
    return (hidden + 0.5) / embed_dim


@torch.no_grad()
def fold(model: Model) -> Model:
    """A plain timm model with the logits of the merged `model`, which stays as it is.

    Raises:
        BackboneError: an adapter is sequential or not merged, or a block does not meet the fold's conditions.
    """
    for name, block in blocks_of(model).items():
        if isinstance(block, Adapted) and not isinstance(block.adapter, ParallelAdapter):
            raise BackboneError(
                f"{name}: a {type(block.adapter).__name__} reads what the block has written, so it folds into no"
                " weights: export it unfolded"
            )
        if any(adapter.is_split for adapter in adapters(block)):
            raise BackboneError(f"{name}: the adapter is still split: merge before folding")
    folded = copy.deepcopy(model)
    adapted = {name: block for name, block in blocks_of(folded).items() if isinstance(block, Adapted)}
    for name, block in adapted.items():
        folded.set_submodule(name, block.block)
    layers = {name: part for name, part in folded.named_modules() if isinstance(part, AdaptedLayer)}
    for name, part in layers.items():
        folded.set_submodule(name, part.layer)
    check_foldable(folded)
    for name, block in adapted.items():
        _check_shared_input(block, name)
    for block in adapted.values():
        _widen(block)
    for part in layers.values():
        part.fold_()
    return folded


def _check_shared_input(adapted: Adapted, name: str) -> None:
    """Raises BackboneError unless adapter and FFN normalise with the same eps and share their activation."""
    adapter, part = adapted.adapter, feed_forward(adapted.block)
    assert isinstance(adapter, ParallelAdapter)
    # By identity: two modules with the same repr may still compute different things.
    if adapter.act is not part.act:
        raise BackboneError(f"{name}: the adapter's activation {adapter.act} is not the FFN's {part.act}")
    if adapter.norm.eps != part.norm.eps:
        raise BackboneError(f"{name}: the adapter's eps {adapter.norm.eps} is not norm2's {part.norm.eps}")


def _widen(adapted: Adapted) -> None:
    """Make the adapter r more hidden units of its block's FFN, in place."""
    block, adapter = adapted.block, adapted.adapter
    assert isinstance(adapter, ParallelAdapter)
    norm, fc1, _, fc2, gamma = feed_forward(block)
    assert isinstance(adapter.down, nn.Linear)
    assert isinstance(adapter.up, nn.Linear)
    down, own_norm = adapter.down, adapter.norm
    down_weight, down_bias = absorb_norm(down.weight, down.bias, own_norm.weight, own_norm.bias)
    fc1_weight, fc1_bias = absorb_norm(fc1.weight, fc1.bias, norm.weight, norm.bias)
    ls2 = torch.ones_like(norm.weight) if gamma is None else gamma
    wide = linear_of(torch.cat([fc1_weight, down_weight]), torch.cat([fc1_bias, down_bias]))
    narrow = linear_of(
        torch.cat([ls2[:, None] * fc2.weight, adapter.scale * adapter.up.weight], dim=1),
        ls2 * fc2.bias + adapter.scale * adapter.up.bias,
    )
    block.set_submodule("mlp.fc1", wide)
    block.set_submodule("mlp.fc2", narrow)
    norm.weight.fill_(1.0)
    norm.bias.fill_(0.0)
    if gamma is not None:
        gamma.fill_(1.0)


def linear_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen linear layer with the given weight (out, in) and bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer.requires_grad_(False)
