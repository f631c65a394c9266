"""Names of tensors in timm's `Eva` for what timm's ViT and the authors of DINOv3 call otherwise.

    blocks.<i>.ls1.gamma         blocks.<i>.gamma_1
    blocks.<i>.attn.qkv.bias     blocks.<i>.attn.q_bias and blocks.<i>.attn.v_bias; k has none
    storage_tokens               reg_token

timm has every DINOv3 with biases of q and v (`..._qkvb`) and without. Those of Meta's S, B and L are zeros, so both
hold their weights.
"""

import re
from collections.abc import Mapping

import torch
from timm.models.eva import Eva, checkpoint_filter_fn
from torch import Tensor

RENAMED = {
    r"\.ls([12])\.gamma$": r".gamma_\1",
    r"\.attn\.([qv])\.bias$": r".attn.\1_bias",
    r"^(storage|register)_tokens$": "reg_token",
}

IDLE = re.compile(r"mask_token|rope(_embed)?\.(?!freqs).*|.*\.bias_mask|local_cls_norm\..*")
"""Tensors that follow from the shape of the model, or that only pre-training reads."""

JOINED = "qkv.bias"

BIASES = ("q_bias", "v_bias")
"""What stands after `attn.` for them."""


def eva_name(name: str) -> str:
    """What timm's Eva calls a tensor that has this name in its ViT."""
    for pattern, own in RENAMED.items():
        name = re.sub(pattern, own, name)
    return name


def eva_state(state: Mapping[str, Tensor], model: Eva) -> dict[str, Tensor]:
    """A checkpoint's tensors by the names of `model` and in its shapes; names that it lacks stay as they are."""
    own = model.state_dict()
    named = {eva_name(name): value for name, value in state.items() if not IDLE.fullmatch(name)}
    for name in [name for name in named if name.endswith(f".attn.{JOINED}") and name not in own]:
        query, key, value = named[name].chunk(3)
        # Meta's own model masks the bias of k, whatever it holds.
        if f"{name}_mask" in state or not key.any():
            attention = name.removesuffix(JOINED)
            named |= {f"{attention}{kind}": bias for kind, bias in zip(BIASES, (query, value), strict=True)}
            del named[name]
    if not any(name.endswith(BIASES) for name in named):
        named |= {name: torch.zeros_like(value) for name, value in own.items() if name.endswith(BIASES)}
    lacking = [name for name in named.keys() - own.keys() if name.endswith(BIASES) and not named[name].any()]
    fitting: dict[str, Tensor] = checkpoint_filter_fn({k: v for k, v in named.items() if k not in lacking}, model)
    return fitting
