"""Names of tensors in torchvision's VisionTransformer, as timm's names. The two compute the same."""

import re
from collections.abc import Mapping

from torch import Tensor

ANCHOR = "conv_proj.weight"
"""The tensor by which torchvision's ViT is recognised."""

NAMES = {
    r"class_token": "cls_token",
    r"encoder\.pos_embedding": "pos_embed",
    r"conv_proj\.(\w+)": r"patch_embed.proj.\1",
    r"encoder\.ln\.(\w+)": r"norm.\1",
    r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)": r"blocks.\1.norm\2.\3",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)": r"blocks.\1.attn.qkv.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)": r"blocks.\1.attn.proj.\2",
    # The layers of the FFN were called linear_1 and linear_2 before torchvision 0.14.
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
}
"""torchvision's name -> timm's."""


def timm_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under timm's names; names that timm lacks, such as `heads.head.weight`, stay as they are."""
    return {_timm_name(name): value for name, value in state.items()}


def _timm_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        if re.fullmatch(theirs, name):
            return re.sub(theirs, ours, name)
    return name
