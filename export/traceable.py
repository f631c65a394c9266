"""Prepare a backbone for tracing, where the exporter would compute a constant from parameters.

In such a constant the parameters could not be found again. So they are replaced by what is computed from them:

    Swin    relative_position_bias_table    relative_position_bias    the biases gathered
    Eva     q_bias, v_bias                  qkv.bias                  both, and the zeros of k between them

`mosa_deploy.graphs.fold` does the same with the parameters of a task that tuned them.
"""

import copy

import torch
from timm.models.eva import EvaAttention
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
def traceable(model: nn.Module) -> nn.Module:
    """A copy of the model with such parameters replaced; the model itself if it has none."""
    if not any(_needs_it(part) for part in model.modules()):
        return model
    whole = copy.deepcopy(model)
    for name, part in list(whole.named_modules()):
        if type(part) is WindowAttention:
            whole.set_submodule(name, GatheredAttention(part))
        elif isinstance(part, EvaAttention) and _needs_it(part):
            join_biases(part)
    return whole


def _needs_it(part: nn.Module) -> bool:
    return type(part) is WindowAttention or (isinstance(part, EvaAttention) and part.q_bias is not None)


def join_biases(attention: EvaAttention) -> None:
    """Give an attention layer's qkv its bias, in place, as timm's other ViTs have it."""
    assert isinstance(attention.qkv, nn.Linear)
    biases = [attention.get_parameter("q_bias"), attention.get_buffer("k_bias"), attention.get_parameter("v_bias")]
    attention.qkv.bias = nn.Parameter(torch.cat(biases))
    for name in ("q_bias", "v_bias"):
        attention.register_parameter(name, None)
