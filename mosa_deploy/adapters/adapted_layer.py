"""A frozen layer with an adapter that folds into its own weight and bias: no shape changes."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mosa_deploy.errors import BackboneError


class AdaptedLayer(nn.Module, ABC):
    """Stands in the place of `layer`. The styles that derive from it say what `adapter` does, and how it folds."""

    layer: nn.Module
    adapter: nn.Module

    @abstractmethod
    def fold_(self) -> None:
        """Put the merged adapter into the parameters of `layer`, in place."""


@torch.no_grad()
def add_to_bias(layer: nn.Module, value: Tensor) -> None:
    """Add to the bias of a layer; one without a bias takes nothing but zeros.

    Raises:
        BackboneError: the layer has no bias, and the value is not zero.
    """
    bias = layer.bias
    if isinstance(bias, Tensor):
        bias += value
    elif value.any():
        raise BackboneError(f"{layer} has no bias, so it cannot take in an adapter that adds a constant")
