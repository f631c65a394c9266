"""RepAdapter, arXiv 2302.08106: linear bottlenecks before attention and before the FFN.

Nothing in it is nonlinear, so the layer that reads it takes it in. For a layer W x + b:

    W f(x) + b = W' x + b'      f(x) = x + s * (U (D x + d) + u)
    W' = W + s * (W U) D        b' = b + W s (U d + u)

In the paper U is group-wise: part i of g reads part i of the hidden units, and writes part i of the channels. With U
split into experts instead, this is MoSA (arXiv 2312.02923) without a wider FFN.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mosa_deploy.adapters.adapted_layer import AdaptedLayer, add_to_bias
from mosa_deploy.adapters.bottleneck import Bottleneck
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.errors import ConfigError


class GroupedLinear(nn.Linear):
    """A linear layer in g groups; its weight (out, in / g) has those of the groups one below the other."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        """Takes what g divides.

        Raises:
            ConfigError: g does not divide the outputs.
        """
        if outputs % groups:
            raise ConfigError(f"--groups {groups}: does not divide the backbone's width {outputs}")
        super().__init__(inputs // groups, outputs)
        self.groups = groups

    def whole(self) -> Tensor:
        """The weight (out, in), with zeros between groups."""
        weight: Tensor = torch.block_diag(*self.weight.chunk(self.groups))
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.whole(), self.bias)


class RepAdapter(Bottleneck):
    """x + s * (U drop(D x + d) + u).

    D (r, C), the weight of `down`, starts kaiming-uniform and U (C, r), that of `up`, at zero, so a new adapter is the
    identity. Before a layer without a bias, d and u stay zero.
    """

    def __init__(self, width: int, biased: bool, config: AdapterConfig, generator: torch.Generator) -> None:
        """Takes the width C of what the layer reads, and whether that layer has a bias.

        Raises:
            ConfigError: `config.groups` does not divide the width.
        """
        super().__init__()
        self.scale, self.biased = config.scale, biased
        self.down = nn.Linear(width, config.bottleneck)
        self.drop = nn.Dropout(config.dropout)
        if config.groups is None:
            self.up = nn.Linear(config.bottleneck, width)
        else:
            self.up = GroupedLinear(config.bottleneck, width, config.groups)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def split_(self, config: AdapterConfig, generator: torch.Generator) -> Self:
        """Split the projections, unless `up` has groups, which stand in the place of experts; see `Bottleneck`."""
        return self if isinstance(self.up, GroupedLinear) else super().split_(config, generator)

    def unfreeze(self) -> None:
        """Let gradients reach the projections, but not biases that the layer could not take in."""
        super().unfreeze()
        for projection in (self.down, self.up):
            projection.bias.requires_grad_(self.biased)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        update: Tensor = self.up(self.drop(self.down(x)))
        return x + self.scale * update

    def update(self) -> tuple[Tensor, Tensor, Tensor]:
        """U' (C, r), D (r, C) and c (C,) of the merged adapter, which is x + U' D x + c."""
        assert isinstance(self.down, nn.Linear)
        assert isinstance(self.up, nn.Linear)
        up = self.scale * (self.up.whole() if isinstance(self.up, GroupedLinear) else self.up.weight)
        return up, self.down.weight, up @ self.down.bias + self.scale * self.up.bias


class ReadingLayer(AdaptedLayer):
    """A linear layer that reads what a RepAdapter makes of its input."""

    layer: nn.Linear
    adapter: RepAdapter

    def __init__(self, layer: nn.Linear, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = RepAdapter(layer.in_features, layer.bias is not None, config, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        out: Tensor = self.layer(self.adapter(x))
        return out

    def fold_(self) -> None:
        """W' = W + (W U') D, b' = b + W c."""
        up, down, constant = self.adapter.update()
        add_to_bias(self.layer, self.layer.weight @ constant)
        self.layer.weight += self.layer.weight @ up @ down
