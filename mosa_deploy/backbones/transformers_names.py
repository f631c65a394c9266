"""Names of tensors in models of Hugging Face's transformers, as timm's names, and what their classifiers read.

Names of transformers 5 and of older releases are known: ViT, MAE, MSN, DINOv2, DINOv3, I-JEPA, CLIP and SigLIP. Query,
key and value, which transformers keep apart, are called `attn.q`, `attn.k` and `attn.v` here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from mosa_deploy.backbones.foldable import Vit
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.errors import BackboneError

ANCHORS = (
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.weight",
    "embeddings.patch_embeddings.weight",
)
"""The tensors by which a model of transformers is recognised: that of ViTs, of CLIP and SigLIP, of DINOv3."""

MODELS = ("vit", "deit", "dinov2_with_registers", "dinov2", "ijepa", "vision_model")
"""What classification models of transformers call the backbone inside them."""

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
    # DINOv2
    "norm1": "norm1",
    "norm2": "norm2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    # DINOv3
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
    # CLIP and SigLIP
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.out_proj": "attn.proj",
}
"""Modules of a block: transformers' name -> timm's."""

OUTSIDE_BLOCKS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.distillation_token": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
    # CLIP and SigLIP
    "embeddings.class_embedding": "cls_token",
    "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.position_embedding.weight": "pos_embed",
    "pre_layrnorm": "norm_pre",
    "post_layernorm": "norm",
    "head.probe": "attn_pool.latent",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}
"""Modules and parameters before and after the blocks: transformers' name -> timm's."""

BLOCK = re.compile(r"(?:encoder\.layer|encoder\.layers|model\.layer|layers|layer)\.(\d+)\.(.+)")

OF_DINOV3 = re.compile(r"(model\.)?layer\.\d+\.(attention\.[qkvo]_proj|mlp\.(up|down)_proj)\..*")
"""Names in the blocks of a DINOv3 that no other model has."""

GATED = re.compile(r"(model\.)?layer\.\d+\.mlp\.gate_proj\..*")

QKV = ("q", "k", "v")
"""In the order in which timm's `qkv` joins them."""


TIMMS = ModelArgs()


@dataclass(frozen=True)
class Family:
    """A kind of model of transformers, told by its tensors."""

    name: str
    head: Literal["token", "mean", "mean before norm", "token and mean", "any"] = "token"
    """What its classifier reads: the class token after the last norm, the mean of all tokens after it, the mean of the
    patches before it, or the class token and the mean of the patches. Where transformers has no classifier, the user's
    own reads what the backbone gives."""
    args: ModelArgs = TIMMS
    """With which a ViT of timm has its tensors, and gives its classifier that."""
    refused: str = ""
    """Why it cannot be read at all."""


MEAN = ModelArgs(global_pool="avg", fc_norm=False, class_token=False)
VIT, DINOV2 = Family("ViT"), Family("DINOv2", "token and mean")
SIGLIP, IJEPA = Family("SigLIP", "mean", MEAN), Family("I-JEPA", "mean", MEAN)
CLIP = Family("CLIP", "mean before norm", ModelArgs(global_pool="avg", fc_norm=False, final_norm=False))
DEIT = Family("DeiT", args=ModelArgs(reg_tokens=1))
BEIT = Family("BEiT", refused="its blocks add relative positions in the attention")
DINOV3 = Family("DINOv3", "any", ModelArgs(global_pool="token"))
DINOV3_GATED = Family("DINOv3", refused="its FFNs are gated (SwiGLU), as in the sizes S+, H+ and 7B")
SWIN = Family("Swin", refused="only ViTs of transformers can be read")

SUPPORTED = (
    "ViT, DeiT, MAE, MSN, DINOv2 (with registers too), DINOv3 (S, B and L), I-JEPA, CLIP and SigLIP of transformers can"
    " be read, and `mosa backbone list` shows what is here or can be fetched"
)


def timm_name(name: str) -> str | None:
    """What timm calls a module or a parameter, e.g. `blocks.0.attn.q.weight`; None if timm has no such part."""
    name = _without_model(name)
    part = name.rpartition(".")[2]
    suffix = f".{part}" if part in ("weight", "bias") else ""
    module = name.removesuffix(suffix)
    if name in OUTSIDE_BLOCKS:
        return OUTSIDE_BLOCKS[name]
    block = BLOCK.fullmatch(module)
    if block is None:
        return OUTSIDE_BLOCKS[module] + suffix if module in OUTSIDE_BLOCKS else None
    return f"blocks.{block[1]}.{IN_BLOCK[block[2]]}{suffix}" if block[2] in IN_BLOCK else None


def _without_model(name: str) -> str:
    """A name without what a classification model calls its backbone."""
    first, _, rest = name.partition(".")
    return rest if first in MODELS else name


def family_of(state: Mapping[str, Tensor]) -> Family | None:
    """The kind of model whose tensors have transformers' names; None if they have others."""
    names = {_without_model(name) for name in state}
    clip, dinov3 = ANCHORS[1:]
    if dinov3 in names:
        return DINOV3_GATED if any(GATED.fullmatch(name) for name in names) else DINOV3
    if clip in names:
        return CLIP if "embeddings.class_embedding" in names else SIGLIP
    if not any(name.endswith(ANCHORS[0]) for name in names):
        return None
    marks = {
        SWIN: r"(swin\w*\.)?encoder\.layers\.\d+\.blocks\..*",
        BEIT: r"(beit\.|data2vec\w*\.)?(encoder\.layer|layers)\.\d+\.lambda_1|.*relative_position_bias.*",
        DEIT: r"embeddings\.distillation_token",
        DINOV2: r".*layer_scale1\.lambda1",
    }
    found = next((kind for kind, mark in marks.items() if any(re.fullmatch(mark, name) for name in names)), None)
    return found or (VIT if "embeddings.cls_token" in names else IJEPA)


def timm_state(state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """A checkpoint under timm's names, with q, k and v joined to qkv; names that timm lacks stay as they are."""
    named = {timm_name(name) or name: value for name, value in state.items() if not name.endswith("position_ids")}
    for name in [name for name in named if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in QKV]
        if all(part in named for part in parts):
            named[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([named.pop(part) for part in parts])
    if family in (CLIP, SIGLIP):
        _reshape_embeddings(named)
    if "register_tokens" in named and {"cls_token", "pos_embed"} <= named.keys():
        # timm adds no position to its prefix tokens here: the class token's own goes into it.
        named["reg_token"], positions = named.pop("register_tokens"), named["pos_embed"]
        named["cls_token"], named["pos_embed"] = named["cls_token"] + positions[:, :1], positions[:, 1:]
    named.pop("mask_token", None)
    return named


def _reshape_embeddings(named: dict[str, Tensor]) -> None:
    """Give the embeddings and the attention pool of CLIP or SigLIP timm's shapes, in place."""
    for name in ("cls_token", "pos_embed"):
        if name in named:
            named[name] = named[name].reshape(1, -1, named[name].shape[-1])
    patches = named["patch_embed.proj.weight"]
    if patches.ndim == 2:
        # SigLIP 2 with free resolution reads the pixels of a patch row by row, the channels of each together.
        side = math.isqrt(patches.shape[1] // 3)
        named["patch_embed.proj.weight"] = patches.reshape(-1, side, side, 3).permute(0, 3, 1, 2)
    for part in ("weight", "bias"):
        joined = next((named.pop(n) for n in list(named) if n.endswith(f"head.attention.in_proj_{part}")), None)
        if joined is not None:
            width = len(joined) // 3
            named[f"attn_pool.q.{part}"], named[f"attn_pool.kv.{part}"] = joined[:width], joined[width:]


def check_head_input(model: Vit, family: Family, inputs: int, where: str) -> None:
    """Whether a model's head reads what the classifier of a family reads; it has so many `inputs`.

    Raises:
        BackboneError: it does not, or no model of timm does; or the model is no DINOv3 where the family is, or only it.
    """
    if (family is DINOV3) != isinstance(model, Eva):
        here, name = (
            ("ViT", "vit_*_patch16_dinov3 of that size") if family is DINOV3 else ("DINOv3", "ViT of that kind")
        )
        raise BackboneError(f"{where} is of transformers' {family.name}, --backbone is a {here}: name timm's {name}")
    if family.head == "any":
        return
    if family.head == "token and mean" and inputs == 2 * model.num_features:
        raise BackboneError(
            f"{where} is of transformers' {family.name}, whose classifier reads the class token and the mean of the"
            " patches together, which is not converted: use it as --backbone-weights, and tune a head on both with mosa"
            " tune --method linear --features cls+mean"
        )
    normed, pool = isinstance(model.norm, nn.LayerNorm), model.global_pool
    match family.head:
        case "mean":
            reads, right = "mean of all tokens after the last norm", pool == "avg" and not model.num_prefix_tokens
        case "mean before norm":
            prefix = getattr(model, "pool_include_prefix", False)
            reads, right = "mean of the patches before the last norm", pool == "avg" and not prefix
            normed = not normed and isinstance(model.fc_norm, nn.Identity)
        case _:
            reads, right = "class token after the last norm", pool == "token"
    if not (right and normed):
        raise BackboneError(
            f"{where} is of transformers' {family.name}, whose head reads the {reads};"
            f" the backbone pools by '{pool}': give the timm ViT with the same weights"
        )
