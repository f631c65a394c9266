"""Adapters that read what a block has written. No weights of the block follow them, so they cannot be folded.

- Pfeiffer: AdapterFusion, arXiv 2005.00247; after the FFN, with a LayerNorm of its own and ReLU.
- Houlsby: arXiv 1902.00751; after attention and after the FFN, on the residual stream, with SiLU.
"""

import math

import torch
from torch import Tensor, nn

from mosa_deploy.adapters.bottleneck import Bottleneck
from mosa_deploy.bundles.adapter_config import AdapterConfig


class SequentialAdapter(Bottleneck):
    """up(act(down(norm(x)))); `down` starts kaiming-uniform and `up` at zero, so a new adapter adds nothing."""

    def __init__(
        self, embed_dim: int, config: AdapterConfig, norm: nn.Module, act: nn.Module, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.norm = norm
        self.down = nn.Linear(embed_dim, config.bottleneck)
        self.act = act
        self.up = nn.Linear(config.bottleneck, embed_dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        out: Tensor = self.up(self.act(self.down(self.norm(x))))
        return out


class PfeifferAdapter(SequentialAdapter):
    """y = h + z + adapter(z), where z = FFN(LN2(h))."""

    def __init__(self, embed_dim: int, config: AdapterConfig, eps: float, generator: torch.Generator) -> None:
        super().__init__(embed_dim, config, nn.LayerNorm(embed_dim, eps=eps), nn.ReLU(), generator)

    def block_output(self, h: Tensor, ffn: Tensor) -> Tensor:
        """The block's output h + ffn + adapter(ffn), from what the FFN read and what it wrote; all (B, N, C)."""
        out: Tensor = h + ffn + self(ffn)
        return out


class HoulsbyAdapter(nn.Module):
    """x <- x + adapter(x), twice on the residual stream: `attn` after attention, `ffn` at the end of the block."""

    def __init__(self, embed_dim: int, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.attn, self.ffn = (
            SequentialAdapter(embed_dim, config, nn.Identity(), nn.SiLU(), generator) for _ in range(2)
        )

    def after_attention(self, h: Tensor) -> Tensor:
        """The residual stream after attention (B, N, C) -> what the FFN reads: h + attn(h)."""
        out: Tensor = h + self.attn(h)
        return out

    def block_output(self, h: Tensor, ffn: Tensor) -> Tensor:
        """The block's output x + self.ffn(x) of x = h + ffn, what the FFN read and what it wrote; all (B, N, C)."""
        x = h + ffn
        out: Tensor = x + self.ffn(x)
        return out
