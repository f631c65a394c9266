"""The shared graph: one backbone for all its tasks. Each sample's adapter comes from banks, which are inputs.

    images (B, 3, H, W), slots (B,) int64, banks -> features (B, C)

Heads, which have different numbers of classes, are applied outside. A batch may mix tasks: each sample gathers the
weights of its own slot.
See `mosa_deploy.graphs.bank`.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from export.traceable import traceable
from mosa_deploy.adapters.fold import linear_of
from mosa_deploy.backbones.foldable import Transformer, check_foldable, drop_layer_scale, feed_forward
from mosa_deploy.bundles.adapter_config import Style
from mosa_deploy.graphs.adapter_weights import PARTS, Layout
from mosa_deploy.utils.affine import absorb_norm

Inputs = dict[str, Tensor]
"""The slots, and the banks by name, during a forward pass."""

SLOTS = "slots"


class SharedMlp(nn.Module):
    """A block's FFN with norm2 and LayerScale absorbed, plus the adapter of each sample's slot in parallel."""

    def __init__(self, fc1: nn.Linear, act: nn.Module, fc2: nn.Linear, inputs: Inputs, block: str) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = fc1, act, fc2
        self.inputs, self.block = inputs, block

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        slots = self.inputs[SLOTS]
        down, down_bias, up, up_bias = (self.inputs[f"{self.block}.{part}"][slots] for part in PARTS)
        hidden = self.act(torch.matmul(x, down) + down_bias[:, None])
        adapted = torch.matmul(hidden, up) + up_bias[:, None]
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out + adapted


class SharedLayer(nn.Module):
    """A layer with banks of its own, which are inputs of the graph."""

    def __init__(self, layer: nn.Module, inputs: Inputs, name: str) -> None:
        super().__init__()
        self.layer = layer
        self.inputs, self.name = inputs, name

    def gathered(self, *parts: str) -> Iterator[Tensor]:
        """Parts of the banks, each with one entry for each sample's slot."""
        slots = self.inputs[SLOTS]
        return (self.inputs[f"{self.name}.{part}"][slots] for part in parts)


class SharedLinear(SharedLayer):
    """A linear layer plus the low-rank update of each sample's slot."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        down, up = self.gathered("down", "up")
        out: Tensor = self.layer(x)
        return out + torch.matmul(torch.matmul(x, down), up)


class SharedReader(SharedLayer):
    """A linear layer behind the RepAdapter of each sample's slot."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        down, up, bias = self.gathered("down", "up", "bias")
        out: Tensor = self.layer(x + torch.matmul(torch.matmul(x, down), up) + bias[:, None])
        return out


class SharedScale(SharedLayer):
    """An operation whose result is scaled and shifted as each sample's slot says."""

    def forward(self, x: Tensor) -> Tensor:
        """What the operation gives, (B, N, out) or (B, out, H, W)."""
        scale, shift = (each[:, None] for each in self.gathered("scale", "shift"))
        if isinstance(self.layer, nn.Conv2d):
            scale, shift = scale.transpose(1, 2)[..., None], shift.transpose(1, 2)[..., None]
        out: Tensor = self.layer(x)
        return out + out * scale + shift


SHARED_LAYERS: dict[Style, type[SharedLayer]] = {
    "low-rank": SharedLinear,
    "repadapter": SharedReader,
    "ssf": SharedScale,
}
"""Style -> what takes the place of a layer that has weights of its own."""


class SharedBackbone(nn.Module):
    """A headless copy of a plain backbone that reads the banks of a layout."""

    def __init__(self, model: Transformer, layout: Layout) -> None:
        super().__init__()
        self.inputs: Inputs = {}
        self.names = list(layout.shapes(1))
        self.backbone = check_foldable(copy.deepcopy(traceable(model)))
        self.backbone.reset_classifier(0)
        for name in layout.places:
            part = self.backbone.get_submodule(name)
            if layout.modules:
                self.backbone.set_submodule(name, SHARED_LAYERS[layout.style](part, self.inputs, name))
            else:
                share_mlp(part, self.inputs, name)

    def forward(self, images: Tensor, slots: Tensor, banks: list[Tensor]) -> Tensor:
        """Images (B, 3, H, W), slots (B,) and banks in the order of the layout -> features (B, C)."""
        self.inputs.update({SLOTS: slots, **dict(zip(self.names, banks, strict=True))})
        features: Tensor = self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)
        return features


@torch.no_grad()
def share_mlp(block: nn.Module, inputs: Inputs, name: str) -> None:
    """Replace a block's FFN by `SharedMlp`, in place, with norm2 and LayerScale absorbed."""
    norm, fc1, act, fc2, gamma = feed_forward(block)
    ls2 = torch.ones_like(norm.weight) if gamma is None else gamma
    wide = linear_of(*absorb_norm(fc1.weight, fc1.bias, norm.weight, norm.bias))
    narrow = linear_of(ls2[:, None] * fc2.weight, ls2 * fc2.bias)
    block.mlp = SharedMlp(wide, act, narrow, inputs, name)
    block.norm2 = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
    drop_layer_scale(block)
