"""A small Swin, registered with timm by importing this module: 32 px, two stages of two blocks, 16 and 32 wide.

The first stage has 4 x 4 windows of 4 x 4 tokens, the second stage 2 x 2. Every second block shifts its windows.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer

NAME = "swin_for_tests"

default_cfgs = generate_default_cfgs({NAME: {"input_size": (3, 32, 32), "num_classes": 10, "crop_pct": 1.0}})


@register_model
def swin_for_tests(pretrained: bool = False, **kwargs: Any) -> SwinTransformer:
    """A small Swin; see the module's docstring."""
    shape = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    model = build_model_with_cfg(SwinTransformer, NAME, pretrained, **{**shape, **kwargs})
    assert isinstance(model, SwinTransformer)
    return model
