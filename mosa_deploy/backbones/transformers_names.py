"""transformers' names of a ViT's parts, those of 5.x and the older ones, as timm's.

Query, key and value, which transformers keep apart, are `attn.q`, `attn.k` and `attn.v` here.
"""

import re
from typing import Any

import torch
from torch import Tensor

ANCHOR = "embeddings.patch_embeddings.projection.weight"
"""The tensor by which a ViT of transformers is found in a checkpoint."""

IN_BLOCK = {
    "layernorm_before": "norm1",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    # Since 5.0, in memory; their files keep the names above.
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}

AROUND = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
}

BLOCK = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)")

PARTS = ("q", "k", "v")
"""In the order of timm's `qkv`."""


def timm_name(name: str) -> str | None:
    """What timm calls a module or a parameter, e.g. `blocks.0.attn.q.weight`; None if it has no name there."""
    name = name.removeprefix("vit.")
    part = name.rpartition(".")[2]
    suffix = f".{part}" if part in ("weight", "bias") else ""
    module = name.removesuffix(suffix)
    block = BLOCK.fullmatch(module)
    if block is None:
        return AROUND[module] + suffix if module in AROUND else None
    return f"blocks.{block[1]}.{IN_BLOCK[block[2]]}{suffix}" if block[2] in IN_BLOCK else None


def is_transformers(state: dict[str, Any]) -> bool:
    """Whether a checkpoint holds a ViT by transformers' names."""
    return any(name.endswith(ANCHOR) for name in state)


def timm_state(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint by timm's names, q, k and v joined to qkv; a name that timm lacks stays as it is."""
    (anchor, *_) = (name for name in state if name.endswith(ANCHOR))
    prefix = anchor.removesuffix(ANCHOR).removesuffix("vit.")
    inner = {name.removeprefix(prefix): value for name, value in state.items()}
    named = {timm_name(name) or name: value for name, value in inner.items()}
    for name in [name for name in named if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in PARTS]
        if all(isinstance(named.get(part), Tensor) for part in parts):
            named[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([named.pop(part) for part in parts])
    return named
