"""The shared graph: one backbone for all its tasks, each sample's adapter taken from banks that are inputs.

    images (B, 3, H, W), slots (B,) int64, banks -> features (B, C)

Heads, of any class count, are applied outside. A batch may mix tasks: each sample gathers the rows of its own slot.
See `mosa_deploy.bank`.
"""

import copy

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mosa_deploy.fold import absorb_norm, linear
from mosa_deploy.plain import check_plain, feed_forward
from mosa_deploy.rows import PARTS


class SharedMlp(nn.Module):
    """A block's FFN with norm2 and LayerScale absorbed, and beside it the adapter of each sample's slot."""

    def __init__(self, fc1: nn.Linear, act: nn.Module, fc2: nn.Linear, inputs: list[Tensor], block: int) -> None:
        """`inputs` holds slots and banks while the model runs; `block` says which banks are read."""
        super().__init__()
        self.fc1, self.act, self.fc2 = fc1, act, fc2
        self.inputs, self.block = inputs, block

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        slots, first = self.inputs[0], 1 + len(PARTS) * self.block
        down, down_bias, up, up_bias = (bank[slots] for bank in self.inputs[first : first + len(PARTS)])
        hidden = self.act(torch.matmul(x, down) + down_bias[:, None])
        adapted = torch.matmul(hidden, up) + up_bias[:, None]
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out + adapted


class SharedBackbone(nn.Module):
    """A headless copy of a plain ViT whose FFNs read banks."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.backbone = share(check_plain(copy.deepcopy(model)), self.inputs)
        self.backbone.reset_classifier(0)

    def forward(self, images: Tensor, slots: Tensor, banks: list[Tensor]) -> Tensor:
        """Images (B, 3, H, W), slots (B,) and banks in the order of `bank_names` -> features (B, C)."""
        self.inputs[:] = [slots, *banks]
        features: Tensor = self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)
        return features


@torch.no_grad()
def share(model: VisionTransformer, inputs: list[Tensor]) -> VisionTransformer:
    """Absorb every norm2 and LayerScale, in place, and let the FFNs read `inputs`."""
    for i, block in enumerate(model.blocks):
        norm, fc1, act, fc2, layer_scale = feed_forward(block)
        ls2 = torch.ones_like(norm.weight) if layer_scale is None else layer_scale.gamma
        wide = linear(*absorb_norm(fc1, norm))
        narrow = linear(ls2[:, None] * fc2.weight, ls2 * fc2.bias)
        block.mlp = SharedMlp(wide, act, narrow, inputs, i)
        block.norm2 = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
        block.ls2 = nn.Identity()
    return model
