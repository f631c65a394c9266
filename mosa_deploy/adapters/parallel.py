"""The adapter beside an FFN: AdaptFormer, arXiv 2205.13535, and with split projections MoSA, arXiv 2312.02923.

It is built dense, split before tuning and merged after it; `mosa_deploy.adapters.fold` then makes it part of the
backbone's own weights.
"""

import math

import torch
from torch import Tensor, nn

from mosa_deploy.adapters.bottleneck import Bottleneck
from mosa_deploy.bundles.adapter_config import AdapterConfig


class ParallelAdapter(Bottleneck):
    """s * (U drop(act(D LNa(h) + d)) + u), added beside the FFN of a block.

    D (r, C), the weight of `down`, starts kaiming-uniform and U (C, r), that of `up`, at zero, so a new adapter adds
    nothing. LNa, `norm`, is the adapter's own LayerNorm, or a frozen copy of the block's (`copy_norm_`).
    """

    tunes_norm = True

    def __init__(
        self, embed_dim: int, config: AdapterConfig, act: nn.Module, eps: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.scale = config.scale
        self.norm = nn.LayerNorm(embed_dim, eps=eps)
        self.down = nn.Linear(embed_dim, config.bottleneck)
        self.act = act
        self.drop = nn.Dropout(config.dropout)
        self.up = nn.Linear(config.bottleneck, embed_dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def copy_norm_(self, norm: nn.LayerNorm) -> None:
        """Read norm(h), as the FFN does. The copy stays frozen; with it a bundle is complete without its backbone."""
        self.norm.load_state_dict(norm.state_dict())
        self.tunes_norm = False

    def unfreeze(self) -> None:
        """Let gradients reach the projections, and `norm` unless it is a copy of the block's."""
        super().unfreeze()
        self.norm.requires_grad_(self.tunes_norm)

    def forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        out: Tensor = self.up(self.drop(self.act(self.down(self.norm(h)))))
        return self.scale * out

    def block_output(self, h: Tensor, ffn: Tensor) -> Tensor:
        """The block's output h + ffn + adapter(h), from what the FFN read and what it wrote; all (B, N, C)."""
        out: Tensor = h + ffn + self(h)
        return out
