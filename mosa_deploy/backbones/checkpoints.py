"""Load the weights of a backbone from .safetensors, Google's .npz or a torch checkpoint, without unpickling anything.

timm renames and resamples. Before that, `containers` reads the tensors of a file or a folder, and `parts` finds the
backbone among them: in a module around it, in a training's checkpoint, or in a self-supervised one (DINO, arXiv
2104.14294; MoCo v3, 2104.02057; MAE, 2111.06377). Everything that does not fit is named in one error.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from timm.models import swin_transformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from mosa_deploy.backbones.containers import INDEX, locate, read_tensors
from mosa_deploy.backbones.eva_names import eva_state
from mosa_deploy.backbones.file_kinds import kind_of
from mosa_deploy.backbones.foldable import Transformer, Vit
from mosa_deploy.backbones.parts import ANCHOR, Found, Head, find_backbone, find_head
from mosa_deploy.backbones.transformers import fit_to_config
from mosa_deploy.backbones.transformers_names import TIMMS
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.errors import LISTED, BackboneError
from mosa_deploy.utils.shapes import shape_faults, shapes_of

HEAD = ("head.weight", "head.bias")

NOT_BACKBONE = (
    "head.",
    "heads.",
    "head_dist.",
    "cls_classifier.",
    "distillation_classifier.",
    "pre_logits.",
    "fc.",
    "attn_pool.",
    "pooler.",
    "decoder_",
    "decoder.",
    "mask_token",
)
"""Beginnings of names in a checkpoint that are ignored if the backbone has no such tensor."""

OPTION = "--backbone-weights"
"""The option that errors name, unless they are told another."""


@torch.no_grad()
def load_weights(model: Transformer, name: str, path: Path, option: str = OPTION) -> Found:
    """Load the weights in a file or a folder into a headless model; timm resamples them to its image size.

    `option` is the command-line option by which the user gave them. Returns what was found in it.

    Raises:
        BackboneError: the file is missing or damaged, holds code, or has tensors that do not fit; all are listed.
    """
    file = locate(path, option)
    if file.suffix == ".npz" and _is_googles(file):
        if not isinstance(model, VisionTransformer):
            raise BackboneError(f"{option} {file}: .npz files hold ViTs only: give {name} as .safetensors or .pth")
        found, faults = Found("", {}, None), _load_npz(model, file, option)
    else:
        found = find_backbone(read_tensors(file, option), f"{option} {file}")
        check_patches(model, name, found, f"{option} {file}")
        faults = _load_state(model, found)
        if not faults and found.family is not None and isinstance(model, Vit):
            fit_to_config(model, file.parent, found.family.name)
    if faults:
        pooled = option != OPTION and "unexpected fc_norm.weight" in faults and "missing norm.weight" in faults
        hint = "; its norm stands behind the pooling: give --pool avg" if pooled else ""
        if isinstance(model, Eva) and "unexpected blocks.0.attn.q_bias" in faults:
            hint = f"; with biases of q and v it is {name.partition('.')[0]}_qkvb"
        raise BackboneError(f"{option} {file} does not fit {name}: {_shortened(faults)}{hint}")
    return found


def check_patches(model: Transformer, name: str, found: Found, where: str) -> None:
    """Check the patches of a ViT's weights: timm would resample them without a word, to a model that answers otherwise.

    Raises:
        BackboneError: the model has patches of another size.
    """
    if not isinstance(model, Vit) or ANCHOR not in found.state:
        return
    sizes = (tuple(found.state[ANCHOR].shape[2:]), tuple(model.get_parameter(ANCHOR).shape[2:]))
    if len(sizes[0]) == 2 and sizes[0] != sizes[1]:
        given, expected = (" x ".join(map(str, sides)) for sides in sizes)
        raise BackboneError(f"{where} has patches of {given} pixels, {name} has {expected}: name the ViT of that size")


def _shortened(faults: str) -> str:
    """The first of many faults, and how many there are."""
    listed = faults.split("; ")
    return faults if len(listed) <= LISTED else f"{'; '.join(listed[:LISTED])}; and {len(listed) - LISTED} more"


def read_head(path: Path, own: Mapping[str, Tensor], option: str) -> Head:
    """The linear head of a checkpoint, whose backbone has the tensors `own` in timm.

    Raises:
        BackboneError: the file cannot be read, or has no head that is one linear layer.
    """
    file = locate(path, option)
    if file.suffix == ".npz" and _is_googles(file):
        raise BackboneError(f"{option} {file}: only the backbone of an .npz file is read: save the model with timm")
    tensors = read_tensors(file, option)
    found = find_backbone(tensors, f"{option} {file}")
    head = find_head(tensors, found, own, f"{option} {file}")
    inputs, width = head.weight.shape[1], own[ANCHOR].shape[0]
    if inputs != width and found.family is None:
        twice = ", such as the class token and the mean of the patches together" if inputs == 2 * width else ""
        raise BackboneError(
            f"{option} {file} has a head that reads {inputs} values{twice}, the backbone gives {width}: a bundle's head"
            " reads what the backbone pools"
        )
    return head


def find_source(path: Path, option: str) -> Found | None:
    """The backbone in a file of any library but Google's; None if the file can only hold a head alone.

    Raises:
        BackboneError: the file cannot be read, or is of a model that cannot be.
    """
    file = locate(path, option)
    if kind_of(file, option) in ("npz", "json") and not file.name.endswith(INDEX):
        return None
    return find_backbone(read_tensors(file, option), f"{option} {file}")


def source_args(path: Path, option: str) -> ModelArgs:
    """With which arguments timm's ViT computes what a model of transformers does with the tensors in a file.

    Where its classifier is a module of the user's own, only its tokens are known, not what the classifier reads. It is
    taken to read the class token of a DINOv3, which comes without one.

    Raises:
        BackboneError: the file cannot be read, or is of a model that cannot be.
    """
    found = find_source(path, option)
    if found is None or found.family is None:
        return TIMMS
    args = found.family.args
    if HEAD[0] in found.state or (found.family.head == "any" and found.prefix):
        return args
    return ModelArgs(reg_tokens=args.reg_tokens, class_token=args.class_token)


def _is_googles(file: Path) -> bool:
    """Whether an .npz file may be one of Google's ViTs: it has names, but neither timm's nor scikit-learn's."""
    try:
        with file.open("rb") as handle:
            arrays = np.load(handle, allow_pickle=False)
            return not any(name.endswith(("patch_embed.proj.weight", "coef_")) for name in arrays.files)
    except Exception:  # As `read_tensors`, which then says what it is.
        return False


def _load_state(model: Transformer, found: Found) -> str:
    """Load a backbone; if something does not fit, load nothing and return what."""
    state, expected = dict(found.state), model.state_dict()
    if found.family is not None and found.family.args.final_norm is False and "norm.weight" not in expected:
        state = {key: value for key, value in state.items() if not key.startswith("norm.")}
    # Without a bias, qkv computes what it does with zeros.
    without = {key: value for key, value in expected.items() if key.endswith("attn.qkv.bias")}
    if not without.keys() & state.keys() and all(key.replace("bias", "weight") in state for key in without):
        state |= {key: torch.zeros_like(value) for key, value in without.items()}
    filtered = state
    with contextlib.suppress(Exception):  # What timm cannot resample is listed below, by its shape.
        if isinstance(model, Eva):
            filtered = eva_state(state, model)
        elif isinstance(model, VisionTransformer):
            filtered = checkpoint_filter_fn(state, model, adapt_layer_scale=True)
        else:
            filtered = swin_transformer.checkpoint_filter_fn(state, model)
    given = {key: value for key, value in filtered.items() if key in expected or not key.startswith(NOT_BACKBONE)}
    if not given.keys() & expected.keys():
        return f"no tensor has one of timm's names, but there are {', '.join(list(filtered)[:3]) or 'none'}, ..."
    faults = shape_faults(shapes_of(expected), shapes_of(given))
    # torch would copy quantised numbers as they are, without their scale.
    quantised = [f"{key} is {value.dtype}" for key, value in given.items() if _is_quantised(value, expected.get(key))]
    if quantised and not faults:
        return f"{quantised[0]}, quantised: save its state dict in floating point"
    if not faults:
        model.load_state_dict(given)
    return faults


def _is_quantised(value: Tensor, expected: Tensor | None) -> bool:
    floating = expected is not None and expected.is_floating_point()
    return floating and (not value.is_floating_point() or value.element_size() < 2)


def _load_npz(model: VisionTransformer, file: Path, option: str) -> str:
    """Load a file with Google's names by timm's own reader; returns what does not fit."""
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    try:
        # Given a path, numpy and timm leave the file open when they fail; a handle is closed here.
        with file.open("rb") as handle:
            blocks = _blocks_of_npz(handle)
            if blocks not in (0, len(model.blocks)):
                return f"it has {blocks} blocks, not {len(model.blocks)}"
            handle.seek(0)
            model.load_pretrained(handle)
    except Exception as error:  # A damaged one raises BadZipFile and more.
        said = f"{type(error).__name__} {str(error).partition(chr(10))[0]}".rstrip()
        advice = "fetch it again, or save its state dict as .safetensors"
        raise BackboneError(f"{option} {file} cannot be read: {said}; {advice}") from error
    # timm silently skips parameters that the file does not hold: those are still NaN.
    return "; ".join(f"missing {key}" for key, value in model.named_parameters() if value.isnan().any())


def _blocks_of_npz(handle: BinaryIO) -> int:
    """The number of blocks of an image tower with Google's names, numbered or stacked; 0 with any other names."""
    arrays = np.load(handle, allow_pickle=False)
    stacked = [key for key in arrays.files if key.endswith("Transformer/encoderblock/LayerNorm_0/scale")]
    if stacked:
        return len(arrays[stacked[0]])
    return len({found[0] for key in arrays.files if (found := re.search(r"Transformer/encoderblock_\d+/", key))})
