"""ViTs of Hugging Face's transformers: their names as timm's, and what only their `config.json` says.

Names of transformers 5 and of older releases are known. Query, key and value, which transformers keep apart, are called
`attn.q`, `attn.k` and `attn.v` here.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mosa_deploy.backbones.foldable import feed_forward
from mosa_deploy.backbones.function import set_function
from mosa_deploy.bundles.model_args import Activation, ModelArgs
from mosa_deploy.errors import BackboneError

CONFIG_FILE = "config.json"

DEFAULT_EPS = 1e-12
"""`layer_norm_eps` of a transformers ViT whose config does not give one; timm's is 1e-6."""

EPS = {"vit": 1e-12, "deit": 1e-12, "dinov2": 1e-6, "dinov2_with_registers": 1e-6, "siglip_vision_model": 1e-6}
"""`layer_norm_eps` by `model_type`, where a config does not give one."""

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""`hidden_act` -> timm's `act_layer`."""

ANCHOR = "embeddings.patch_embeddings.projection.weight"
"""The tensor by which a transformers ViT is recognised in a checkpoint."""

IN_BLOCK = {
    "layernorm_before": "norm1",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    # Since 5.0, in memory; the files keep the names above.
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Modules of a block: transformers' name -> timm's."""

OUTSIDE_BLOCKS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
}
"""Modules and parameters before and after the blocks: transformers' name -> timm's."""

BLOCK = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)")

QKV = ("q", "k", "v")
"""In the order in which timm's `qkv` joins them."""


def timm_name(name: str) -> str | None:
    """What timm calls a module or a parameter, e.g. `blocks.0.attn.q.weight`; None if timm has no such part."""
    name = name.removeprefix("vit.")
    part = name.rpartition(".")[2]
    suffix = f".{part}" if part in ("weight", "bias") else ""
    module = name.removesuffix(suffix)
    block = BLOCK.fullmatch(module)
    if block is None:
        return OUTSIDE_BLOCKS[module] + suffix if module in OUTSIDE_BLOCKS else None
    return f"blocks.{block[1]}.{IN_BLOCK[block[2]]}{suffix}" if block[2] in IN_BLOCK else None


def is_transformers(state: dict[str, Any]) -> bool:
    """Whether the tensors of a checkpoint have transformers' names."""
    return any(name.endswith(ANCHOR) for name in state)


def timm_state(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint under timm's names, with q, k and v joined to qkv; names that timm lacks stay as they are."""
    (anchor, *_) = (name for name in state if name.endswith(ANCHOR))
    prefix = anchor.removesuffix(ANCHOR).removesuffix("vit.")
    inner = {name.removeprefix(prefix): value for name, value in state.items()}
    named = {timm_name(name) or name: value for name, value in inner.items()}
    for name in [name for name in named if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in QKV]
        if all(isinstance(named.get(part), Tensor) for part in parts):
            named[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([named.pop(part) for part in parts])
    return named


def read_config(folder: Path) -> dict[str, Any]:
    """The object in a folder's `config.json`; an empty one if there is no such file.

    Raises:
        BackboneError: the file does not hold a JSON object.
    """
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BackboneError(f"{path} is not a JSON object: repair it, or move it elsewhere")
    return content


def model_args(config: dict[str, Any]) -> ModelArgs:
    """What the config of a ViT of transformers says of heads, activation and eps.

    Raises:
        BackboneError: its activation is none of timm's, or a value is of no use.
    """
    config = config.get("vision_config") or config
    act, kind = config.get("hidden_act", "gelu"), config.get("model_type", "")
    if act not in ACTIVATIONS:
        raise BackboneError(f"hidden_act {act}, known are {', '.join(ACTIVATIONS)}")
    given = {
        "num_heads": config.get("num_attention_heads"),
        "act_layer": ACTIVATIONS[act],
        "norm_eps": config.get("layer_norm_eps", EPS.get(kind, DEFAULT_EPS)),
    }
    try:
        return ModelArgs.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        raise BackboneError(f"{fault['loc'][0]} {fault['input']}: {fault['msg']}") from None


def fit_to_config(model: VisionTransformer, folder: Path) -> None:
    """Let `model` compute, in place, what the ViT computes whose weights lie in the folder, as its config says.

    Raises:
        BackboneError: the config is damaged, or says something that timm's ViT cannot compute.
    """
    path = folder / CONFIG_FILE
    config = read_config(folder)
    try:
        set_function(model, model_args(config))
    except BackboneError as error:
        raise BackboneError(f"{path} does not fit the backbone: {error}; choose another ViT") from None


def layer_norm_eps(model: VisionTransformer) -> float:
    """The eps of a model's LayerNorms."""
    return feed_forward(model.blocks[0]).norm.eps
