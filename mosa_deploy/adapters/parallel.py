"""The adapter beside an FFN, dense or split; `mosa_deploy.adapters.low_rank` has the other style.

- Adapter, parallel style: AdaptFormer, arXiv 2205.13535.
- Split projections: MoSA, "Split & Merge", arXiv 2312.02923.

Its life: built dense, `split_` before tuning, `merge_` afterwards, and folded into the backbone by
`mosa_deploy.adapters.fold`.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mosa_deploy.adapters.split import split
from mosa_deploy.bundles.adapter_config import AdapterConfig


class SplitLinear(nn.Module):
    """A linear layer whose update is shared out among E experts, kept as one weight and one owner map.

        training:    W_k = W0 + Delta * [owner == k]    b_k = bias[k]       one k drawn for each pass
        evaluation:  W   = W0 + m * Delta               b   = mean(bias)    m = 1 / E: the expectation over the draw

    In training a batch holds `passes` equal parts, one after the other, and each part has a draw of its own. With
    `dense` no expert is drawn, and training too uses the merged weight. `merge_scale` is m, 1 / E if None.
    """

    base: Tensor
    owner: Tensor
    bias: nn.Parameter

    def __init__(
        self,
        base: Tensor,
        bias: Tensor | None,
        owner: Tensor,
        experts: int,
        generator: torch.Generator,
        merge_scale: float | None = None,
    ) -> None:
        """base, owner: (out, in); bias: (out,), where every expert's own bias starts, if the layer has any."""
        super().__init__()
        self.experts = experts
        self.merge_scale = 1 / experts if merge_scale is None else merge_scale
        self.passes = 1
        self.dense = False
        self.generator = generator
        self.weight = nn.Parameter(torch.zeros_like(base))
        # As in nn.Linear, a layer without one has None, whatever the annotation says.
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().repeat(experts, 1)))
        self.register_buffer("base", base.detach().clone())
        self.register_buffer("owner", owner)

    @classmethod
    def from_base(cls, linear: nn.Linear, config: AdapterConfig, generator: torch.Generator) -> Self:
        """Split a dense layer: its weight becomes W0, and Delta starts at zero."""
        owner = split((linear.out_features, linear.in_features), config.experts, generator)
        return cls(linear.weight, linear.bias, owner, config.experts, generator, config.merge_scale)

    def expert(self, k: int) -> tuple[Tensor, Tensor | None]:
        """The weight (out, in) and bias (out,) with expert k active."""
        return self.base + self.weight * (self.owner == k), None if self.bias is None else self.bias[k]

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The weight (out, in) and bias (out,) that stand for all experts at once."""
        return self.base + self.merge_scale * self.weight, None if self.bias is None else self.bias.mean(0)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); in training the first dimension is a multiple of `passes`."""
        if self.dense or not self.training:
            return F.linear(x, *self.merged())
        drawn = torch.randint(self.experts, (self.passes,), generator=self.generator).tolist()
        parts = x.chunk(self.passes)
        return torch.cat([F.linear(part, *self.expert(k)) for part, k in zip(parts, drawn, strict=True)])

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The dense layer that evaluation uses."""
        weight, bias = self.merged()
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs, bias is not None, device=weight.device, dtype=weight.dtype)
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
        return linear


class Bottleneck(nn.Module):
    """Two projections, C -> r -> C' : what an adapter of any style is made of, and what is split and merged."""

    down: nn.Linear | SplitLinear
    up: nn.Linear | SplitLinear

    def split_(self, config: AdapterConfig, generator: torch.Generator) -> Self:
        """Split what `config.share` does not keep dense; the owner maps and the draws of the two are independent."""
        if config.share != "down" and isinstance(self.down, nn.Linear):
            self.down = SplitLinear.from_base(self.down, config, generator)
        if config.share != "up" and isinstance(self.up, nn.Linear):
            self.up = SplitLinear.from_base(self.up, config, generator)
        return self

    def merge_(self) -> Self:
        """Make both projections dense again; a dense adapter stays as it is."""
        if isinstance(self.down, SplitLinear):
            self.down = self.down.merge()
        if isinstance(self.up, SplitLinear):
            self.up = self.up.merge()
        return self

    def train_(self) -> Self:
        """Let whatever of it is tuned be trained."""
        return self.requires_grad_(True)

    def after_attention(self, h: Tensor) -> Tensor:
        """The residual stream after attention (B, N, C) -> what the FFN reads."""
        return h

    @property
    def is_split(self) -> bool:
        """Whether a projection still has experts."""
        return isinstance(self.down, SplitLinear) or isinstance(self.up, SplitLinear)


class ParallelAdapter(Bottleneck):
    """scale * up(drop(act(down(norm(h))))), added beside the FFN of a block.

    `down` is kaiming-uniform, `up` zero, so that a new adapter changes nothing. `norm` is a LayerNorm of its own, or,
    with `read_`, a copy of the block's that stays as it is.
    """

    own_norm = True

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

    def read_(self, norm: nn.LayerNorm) -> Self:
        """Read norm(h), as the FFN does: the copy makes the adapter whole without its block."""
        self.norm.load_state_dict(norm.state_dict())
        self.own_norm = False
        return self

    def train_(self) -> Self:
        """See `Bottleneck.train_`."""
        super().train_().norm.requires_grad_(self.own_norm)
        return self

    def forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        out: Tensor = self.up(self.drop(self.act(self.down(self.norm(h)))))
        return self.scale * out

    def finish(self, h: Tensor, z: Tensor) -> Tensor:
        """What the FFN read and wrote (B, N, C) -> the block's output: h + z + adapter(h)."""
        out: Tensor = h + z + self(h)
        return out
