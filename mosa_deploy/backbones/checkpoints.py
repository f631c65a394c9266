"""Load the weights of a backbone from .safetensors, Google's .npz or torch's .pth, without unpickling anything.

timm unwraps, renames and resamples. This module adds three things: it finds the backbone in a self-supervised
checkpoint (DINO, arXiv 2104.14294; MoCo v3, 2104.02057; MAE, 2111.06377), knows the names of transformers, and names
everything that does not fit in one error.
"""

import contextlib
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from timm.models import load_state_dict, swin_transformer
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.transformers import fit_to_config, is_transformers, timm_state
from mosa_deploy.errors import BackboneError
from mosa_deploy.utils.shapes import shape_faults, shapes_of

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".tar")

ANCHOR = "patch_embed.proj.weight"
"""The tensor by which a backbone is found in a checkpoint of several parts."""

NOT_EVALUATED = ("momentum", "student")
"""Copies of the backbone that MoCo v3 and DINO do not evaluate themselves."""

HEAD = ("head.weight", "head.bias")

NOT_BACKBONE = (
    "head.",
    "head_dist.",
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
def load_weights(model: Transformer, name: str, file: Path, option: str = OPTION) -> None:
    """Load the weights in `file` into a headless model; timm resamples them to its patch and image size.

    `option` is the command-line option by which the user gave the file.

    Raises:
        BackboneError: the file is missing or damaged, holds code, or has tensors that do not fit; all are listed.
    """
    if file.is_file() and file.suffix == ".npz":
        if not isinstance(model, VisionTransformer):
            raise BackboneError(f"{option} {file}: .npz files hold ViTs only: give {name} as .safetensors or .pth")
        faults = _load_npz(model, file, option)
    else:
        state = read_state(file, option)
        faults = _load_state(model, state)
        if not faults and is_transformers(state) and isinstance(model, VisionTransformer):
            fit_to_config(model, file.parent)
    if faults:
        raise BackboneError(f"{option} {file} does not fit {name}: {faults}")


def read_head(file: Path, option: str) -> dict[str, Tensor]:
    """`head.weight` (K, C) and `head.bias` (K,) of a checkpoint, fp32.

    Raises:
        BackboneError: the file cannot be read, or has no linear head.
    """
    if file.suffix == ".npz":
        raise BackboneError(f"{option} {file}: only the backbone of an .npz file is read: save the model with timm")
    state = _backbone_part(read_state(file, option))
    missing = [name for name in HEAD if not isinstance(state.get(name), Tensor)]
    if missing:
        raise BackboneError(f"{option} {file} has no {' and no '.join(missing)}: give one with a linear head")
    return {name: state[name].float() for name in HEAD}


def read_state(file: Path, option: str) -> dict[str, Any]:
    """The state dict in a file of tensors, without the wrappers that timm knows, such as `state_dict` or `model`.

    Raises:
        BackboneError: the file is missing or damaged, has another suffix, or holds code.
    """
    if not file.is_file():
        raise BackboneError(f"{option} {file}: no such file")
    if file.suffix not in SUFFIXES:
        raise BackboneError(f"{option} {file}: give a file that ends in {', '.join(SUFFIXES)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # A damaged file raises KeyError, EOFError, AttributeError and more.
        reason = str(error.__cause__ or error)
        code = re.search(r"GLOBAL (\S+)", reason)
        if code or "Cannot use ``weights_only" in reason:
            held = f" ({code[1]})" if code else ""
            raise BackboneError(
                f"{option} {file} holds more than tensors{held}, which may run code when it is read:"
                " save its state dict as .safetensors"
            ) from error
        raise _unreadable(file, error, option) from error
    return state


def _unreadable(file: Path, error: Exception, option: str) -> BackboneError:
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    # Only its first sentence: torch's next ones advise to unpickle.
    reason = f"{type(error).__name__} {str(error).partition('. ')[0].partition(chr(10))[0]}".rstrip()
    advice = "fetch it again, or save its state dict as .safetensors"
    return BackboneError(f"{option} {file} cannot be read: {reason}; {advice}")


def _load_state(model: Transformer, state: dict[str, Any]) -> str:
    """Load the backbone in a state dict; if something does not fit, load nothing and return what."""
    state = _backbone_part(state)
    with contextlib.suppress(Exception):  # What timm cannot resample is listed below, by its shape.
        if isinstance(model, VisionTransformer):
            state = checkpoint_filter_fn(dict(state), model, adapt_layer_scale=True)
        else:
            state = swin_transformer.checkpoint_filter_fn(dict(state), model)
    expected = model.state_dict()
    given = {
        key: value
        for key, value in state.items()
        if isinstance(value, Tensor) and (key in expected or not key.startswith(NOT_BACKBONE))
    }
    if not given.keys() & expected.keys():
        return f"no tensor has one of timm's names, but there are {', '.join(list(state)[:3]) or 'none'}, ..."
    faults = shape_faults(shapes_of(expected), shapes_of(given))
    if not faults:
        model.load_state_dict(given)
    return faults


def _backbone_part(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of the backbone without their common prefix; the whole state dict if no backbone is found."""
    state = state.get("teacher", state)
    if is_transformers(state):
        return timm_state(state)
    prefixes = [key.removesuffix(ANCHOR) for key in state if key.endswith(ANCHOR)]
    if not prefixes:
        return state
    prefix = min(prefixes, key=lambda p: (p != "", any(word in p for word in NOT_EVALUATED), p))
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


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
    except Exception as error:  # As in `read_state`, and BadZipFile.
        raise _unreadable(file, error, option) from error
    # timm silently skips parameters that the file does not hold: those are still NaN.
    return "; ".join(f"missing {key}" for key, value in model.named_parameters() if value.isnan().any())


def _blocks_of_npz(handle: BinaryIO) -> int:
    """The number of blocks of an image tower with Google's names, numbered or stacked; 0 with any other names."""
    arrays = np.load(handle, allow_pickle=False)
    stacked = [key for key in arrays.files if key.endswith("Transformer/encoderblock/LayerNorm_0/scale")]
    if stacked:
        return len(arrays[stacked[0]])
    return len({found[0] for key in arrays.files if (found := re.search(r"Transformer/encoderblock_\d+/", key))})
