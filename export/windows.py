"""A Swin as it is traced: every position bias gathered from its table, and a parameter of its own.

The exporter would gather it too, as a constant, in which no parameter of the model can be found again.
"""

import copy

import torch
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn


class GatheredAttention(WindowAttention):
    """timm's attention in windows, with the bias (1, heads, N, N) instead of its table; N tokens are in a window."""

    def __init__(self, attention: WindowAttention) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(attention.__dict__)
        self._parameters = {"relative_position_bias": nn.Parameter(attention._get_rel_pos_bias())}
        # The other kernel would add bias and mask before it is called.
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
