"""What the `config.json` of transformers beside a ViT's weights says that no tensor shows."""

import json
from pathlib import Path
from typing import Any

from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mosa_deploy.backbones.foldable import feed_forward
from mosa_deploy.errors import BackboneError

FILE = "config.json"

EPS = 1e-12
"""`layer_norm_eps` of a ViT of transformers that does not say; timm's is 1e-6."""


def read_config(folder: Path) -> dict[str, Any]:
    """The object in a folder's `config.json`; an empty one if there is no such file.

    Raises:
        BackboneError: it holds something else.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BackboneError(f"{path} is not a JSON object: mend it, or move it elsewhere")
    return content


def fit_to_config(model: VisionTransformer, folder: Path) -> None:
    """Give the LayerNorms of `model`, in place, the eps of the ViT whose weights lie in the folder.

    Raises:
        BackboneError: that ViT has another number of attention heads, or another activation.
    """
    config = read_config(folder)
    attention = model.blocks[0].attn
    assert isinstance(attention, Attention)
    activation = type(feed_forward(model.blocks[0]).act).__name__.lower()
    ours = {"num_attention_heads": attention.num_heads, "hidden_act": activation}
    faults = [f"{name} {config[name]}, not {value}" for name, value in ours.items() if config.get(name, value) != value]
    if faults:
        raise BackboneError(f"{folder / FILE} does not fit the backbone: {'; '.join(faults)}; choose another ViT")
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = float(config.get("layer_norm_eps", EPS))


def eps_of(model: VisionTransformer) -> float:
    """The eps of its LayerNorms."""
    return feed_forward(model.blocks[0]).norm.eps
