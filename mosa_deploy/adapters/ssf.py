"""SSF, arXiv 2210.08823: scale and shift the result of every operation, channel by channel.

    y' = g * y + t

The operations are linear layers, norms and the patch embedding, all of the form y = W x + b in each channel, so

    W' = diag(g) W      b' = g * b + t

Without experts and without a bottleneck: a task's adapter is two vectors for each operation.
"""

import torch
from torch import Tensor, nn

from mosa_deploy.adapters.adapted_layer import AdaptedLayer, add_to_bias
from mosa_deploy.adapters.bottleneck import Adapter

Operation = nn.Linear | nn.LayerNorm | nn.Conv2d


class ScaleShift(Adapter):
    """g * y + t. It starts as the identity, g = 1 and t = 0; after an operation without a bias, t stays zero."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        width = len(operation.weight)
        self.shifts = operation.bias is not None
        self.shape = (width, 1, 1) if isinstance(operation, nn.Conv2d) else (width,)
        """How channels lie in what the operation gives: (B, C, H, W), or last."""
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def unfreeze(self) -> None:
        """Let gradients reach both vectors, but not a shift that the operation could not take in."""
        super().unfreeze()
        self.shift.requires_grad_(self.shifts)

    def forward(self, y: Tensor) -> Tensor:
        """(B, ..., C) or (B, C, H, W), and the same."""
        return self.scale.view(self.shape) * y + self.shift.view(self.shape)


class ScaledLayer(AdaptedLayer):
    """An operation whose result is scaled and shifted."""

    layer: Operation
    adapter: ScaleShift

    def __init__(self, layer: Operation) -> None:
        super().__init__()
        self.layer = layer
        self.adapter = ScaleShift(layer)

    def forward(self, x: Tensor) -> Tensor:
        """What the operation gives, scaled and shifted."""
        out: Tensor = self.adapter(self.layer(x))
        return out

    def fold_(self) -> None:
        """W' = diag(g) W, b' = g * b + t."""
        scale, shift = self.adapter.scale, self.adapter.shift
        self.layer.weight *= scale.view(-1, *[1] * (self.layer.weight.ndim - 1))
        if self.layer.bias is not None:
            self.layer.bias *= scale
        add_to_bias(self.layer, shift)
