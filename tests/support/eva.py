"""Small DINOv3s, registered with timm by importing this module: 32 px, patches of 8, two blocks of width 32.

timm takes a family from the name of the module that registers a model, so this one is called as timm's own.
"""

from functools import partial
from typing import Any

from timm.layers import LayerNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva

NAME = "vit_for_tests_dinov3"
BIASED = "vit_for_tests_dinov3_qkvb"
"""The same with biases of q and v."""

CONFIG = {"input_size": (3, 32, 32), "num_classes": 10, "crop_pct": 1.0, "fixed_input_size": True}

default_cfgs = generate_default_cfgs({NAME: CONFIG, BIASED: CONFIG})


@register_model
def vit_for_tests_dinov3(pretrained: bool = False, **kwargs: Any) -> Eva:
    """A small DINOv3; see the module's docstring."""
    return _create(NAME, pretrained, qkv_bias=False, **kwargs)


@register_model
def vit_for_tests_dinov3_qkvb(pretrained: bool = False, **kwargs: Any) -> Eva:
    """A small DINOv3 with biases of q and v."""
    return _create(BIASED, pretrained, qkv_bias=True, **kwargs)


def _create(name: str, pretrained: bool, **kwargs: Any) -> Eva:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_reg_tokens": 4}
    timms = {
        "dynamic_img_size": True,
        "init_values": 1e-5,
        "norm_layer": partial(LayerNorm, eps=1e-5),
        "rope_rotate_half": True,
        "rope_temperature": 100,
        "rope_type": "dinov3",
        "use_abs_pos_emb": False,
        "use_fc_norm": False,
        "use_rot_pos_emb": True,
    }
    model = build_model_with_cfg(Eva, name, pretrained, **{**shape, **timms, **kwargs})
    assert isinstance(model, Eva)
    return model
