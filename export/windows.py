"""Prepare a Swin for tracing: replace the table of position biases by the gathered biases.

The exporter would gather them too, into a constant in which the table, a parameter of the model, cannot be found again.
"""

import copy

import torch
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn


class GatheredAttention(WindowAttention):
    """timm's window attention with the bias (1, heads, N, N) as a parameter; a window has N tokens."""

    def __init__(self, attention: WindowAttention) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(attention.__dict__)
        self._parameters = {"relative_position_bias": nn.Parameter(attention._get_rel_pos_bias())}
        # The fused kernel would add bias and mask before the attention scores.
        self.fused_attn = False

    def _get_rel_pos_bias(self) -> Tensor:
        return self.get_parameter("relative_position_bias")


@torch.no_grad()
def gathered(model: nn.Module) -> nn.Module:
    """A copy of the model with `GatheredAttention`; the model itself if it has no windows."""
    windows = [name for name, part in model.named_modules() if type(part) is WindowAttention]
    if not windows:
        return model
    whole = copy.deepcopy(model)
    for name in windows:
        attention = whole.get_submodule(name)
        assert isinstance(attention, WindowAttention)
        whole.set_submodule(name, GatheredAttention(attention))
    return whole
