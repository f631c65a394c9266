"""What every adapter is: it is split before tuning and merged after it, if it has experts."""

from typing import Self

import torch
from torch import Tensor, nn

from mosa_deploy.adapters.split_linear import SplitLinear
from mosa_deploy.bundles.adapter_config import AdapterConfig


class Adapter(nn.Module):
    """What a task adds to a frozen model; the styles of adapters derive from it. This one has no experts."""

    def split_(self, config: AdapterConfig, generator: torch.Generator) -> Self:
        """Give the adapter its experts, in place.

        Raises:
            ConfigError: a projection has fewer entries than `config.experts`.
        """
        return self

    def merge_(self) -> Self:
        """Make the adapter dense again, in place; one that is dense stays as it is."""
        return self

    @property
    def is_split(self) -> bool:
        """Whether it still has experts."""
        return False

    def unfreeze(self) -> None:
        """Let gradients reach the parameters that tuning changes: all of them, unless a style says otherwise."""
        self.requires_grad_(True)


class Bottleneck(Adapter):
    """Two projections, `down` (in -> r) and `up` (r -> out), each dense or split."""

    down: nn.Linear | SplitLinear
    up: nn.Linear | SplitLinear

    def split_(self, config: AdapterConfig, generator: torch.Generator) -> Self:
        """Split, in place, the projections that `config.share` does not keep dense; each draws its own owner map.

        Raises:
            ConfigError: a projection has fewer entries than `config.experts`.
        """
        if config.share != "down" and isinstance(self.down, nn.Linear):
            self.down = SplitLinear.from_base(self.down, config, generator)
        if config.share != "up" and isinstance(self.up, nn.Linear):
            self.up = SplitLinear.from_base(self.up, config, generator)
        return self

    def merge_(self) -> Self:
        """Make both projections dense again, in place; a dense adapter stays as it is."""
        if isinstance(self.down, SplitLinear):
            self.down = self.down.merge()
        if isinstance(self.up, SplitLinear):
            self.up = self.up.merge()
        return self

    @property
    def is_split(self) -> bool:
        """Whether a projection still has experts."""
        return isinstance(self.down, SplitLinear) or isinstance(self.up, SplitLinear)

    def after_attention(self, h: Tensor) -> Tensor:
        """The residual stream after attention (B, N, C) -> what the FFN reads: the same, unless a style changes it."""
        return h
