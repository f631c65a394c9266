"""Low-rank updates of a block's linear layers, dense (LoRA) or split (MoSL).

- LoRA: arXiv 2106.09685; B starts at zero, so a new update adds nothing.
- MoSL: "Split & Merge", arXiv 2312.02923; B is split into experts, A is shared.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mosa_deploy.adapters.adapted_layer import AdaptedLayer
from mosa_deploy.adapters.bottleneck import Bottleneck
from mosa_deploy.bundles.adapter_config import TARGET_SLICES, AdapterConfig, Target


class LowRankUpdate(Bottleneck):
    """B A x without biases: A (r, in), the weight of `down`, starts kaiming-uniform, and B (out, r) at zero."""

    def __init__(self, inputs: int, outputs: int, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, config.bottleneck, bias=False)
        self.up = nn.Linear(config.bottleneck, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        out: Tensor = self.up(self.down(x))
        return out


class LowRankAdapter(nn.Module):
    """s * B A drop(x) of every target, each in its own slice of the layer's outputs; slices that overlap add up."""

    def __init__(
        self, linear: nn.Linear, targets: Sequence[Target], config: AdapterConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.scale, self.outputs = config.scale, linear.out_features
        self.drop = nn.Dropout(config.dropout)
        for target in targets:
            outputs = linear.out_features // TARGET_SLICES[target].parts
            self.add_module(target, LowRankUpdate(linear.in_features, outputs, config, generator))

    def updates(self) -> dict[Target, LowRankUpdate]:
        """The update of each target."""
        own = dict(self.named_children())
        return {target: update for target in TARGET_SLICES if isinstance(update := own.get(target), LowRankUpdate)}

    def pad_to_outputs(self, target: Target, value: Tensor) -> Tensor:
        """A target's slice (..., out / parts), padded with zeros to all of the layer's outputs (..., out)."""
        start = TARGET_SLICES[target].start(self.outputs)
        return F.pad(value, (start, self.outputs - start - value.shape[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        x = self.drop(x)
        parts = [self.pad_to_outputs(target, update(x)) for target, update in self.updates().items()]
        return self.scale * torch.stack(parts).sum(0) if len(parts) > 1 else self.scale * parts[0]

    def delta_weight(self) -> Tensor:
        """What the merged adapter adds to the layer's weight (out, in): s * B A, each target in its own rows."""
        products = [
            self.pad_to_outputs(target, (update.up.weight @ update.down.weight).T).T
            for target, update in self.updates().items()
        ]
        return self.scale * torch.stack(products).sum(0)


class LowRankLinear(AdaptedLayer):
    """A frozen linear layer with a low-rank adapter: W x + b + adapter(x)."""

    layer: nn.Linear
    adapter: LowRankAdapter

    def __init__(self, layer: nn.Linear, adapter: LowRankAdapter) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        out: Tensor = self.layer(x) + self.adapter(x)
        return out

    def fold_(self) -> None:
        """W' = W + s * B A."""
        self.layer.weight += self.adapter.delta_weight()
