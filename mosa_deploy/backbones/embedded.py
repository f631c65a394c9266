"""The embedded backbone: a small ViT for 32-pixel images, pre-trained on CIFAR-10, whose weights come with the package.

Importing this module registers it with timm, so that `timm.create_model("vit_tinyd6_patch4_32.cifar10",
pretrained=True)` works offline. `weights/README.md` is its model card.
"""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from mosa_deploy.backbones.names import EMBEDDED

NAME = EMBEDDED
ARCHITECTURE = NAME.partition(".")[0]
WEIGHTS = Path(__file__).parent / "weights" / f"{NAME}.safetensors"

default_cfgs = generate_default_cfgs(
    {
        NAME: {
            "file": str(WEIGHTS),
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def vit_tinyd6_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-Tiny's width (embed_dim 192, 3 heads) at depth 6, patches of 4 in 32 x 32, average-pooled tokens."""
    shape = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3}
    pooling = {"class_token": False, "global_pool": "avg"}
    settings = {**shape, **pooling, **kwargs}
    # The filter resamples the position embedding for images of another size.
    model = build_model_with_cfg(
        VisionTransformer, ARCHITECTURE, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **settings
    )
    assert isinstance(model, VisionTransformer)
    return model
