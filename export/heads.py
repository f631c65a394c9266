"""A head without its backbone: a linear layer of torch, or the coefficients of a linear classifier of scikit-learn.

    torch          weight (K, C) and bias (K,), with any prefix
    scikit-learn   coef_ (K, C), intercept_ (K,), classes_; mean_ and scale_ of a StandardScaler before it are absorbed:

        coef_ ((x - mean_) / scale_) + intercept_  =  (coef_ / scale_) x + intercept_ - (coef_ / scale_) mean_

One row of coefficients is the binary case. Its sigmoid is the softmax of two outputs, of which the first is zero.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mosa_deploy.backbones.checkpoints import HEAD
from mosa_deploy.backbones.containers import locate, read_tensors
from mosa_deploy.backbones.file_kinds import kind_of
from mosa_deploy.backbones.parts import Found, Head, only_linear
from mosa_deploy.errors import BackboneError
from mosa_deploy.utils.text import decode_text, read_json

KNOWN = {"coef_", "intercept_", "classes_", "mean_", "scale_"}
"""What is read of scikit-learn's attributes."""

IDLE = {
    "n_features_in_",
    "n_iter_",
    "n_samples_seen_",
    "feature_names_in_",
    "C_",
    "l1_ratio_",
    "Cs_",
    "l1_ratios_",
    "var_",
}
"""Attributes that do not change the answer."""


SCALED = (
    "mean_ and scale_ are taken as those of a StandardScaler before it, (x - mean_) / scale_: leave out mean_ if it has"
    " with_mean=False"
)

SHOWN = 6
"""The largest number of tensors that a note names."""

SCRAMBLED = (
    "safetensors writes an array of numpy as it lies in memory, and scikit-learn's may lie by columns: if coef_ was not"
    " saved with np.ascontiguousarray, it is scrambled; np.savez is safe"
)


@dataclass(frozen=True)
class HeadAlone:
    """A head by timm's names, and its class names if the file has them."""

    tensors: dict[str, Tensor]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    """What the file does not say, and how it was taken."""


def read_head_alone(path: Path, width: int, option: str) -> HeadAlone | None:
    """The head in a file that holds no backbone; None if it holds one. `width` is C of the backbone.

    Raises:
        BackboneError: the file cannot be read, holds no linear head, or one that does not fit the backbone.
    """
    file = locate(path, option)
    where = f"{option} {file}"
    arrays = _attributes(file, option)
    if arrays is not None:
        head = _of_scikit_learn(arrays, where)
        if kind_of(file, option) == "safetensors":
            head = replace(head, notes=(*head.notes, SCRAMBLED))
    else:
        tensors = read_tensors(file, option)
        if not _is_small(tensors):
            return None
        found = only_linear(tensors, where)
        head = HeadAlone(found.tensors, (), tuple(_bias_notes(found)))
    outputs, inputs = head.tensors["head.weight"].shape
    if inputs != width or head.tensors["head.bias"].shape != (outputs,):
        if outputs == width:
            raise BackboneError(f"{where} has a weight of {outputs} x {inputs}, (C, K): save its transpose, (K, C)")
        twice = ", such as the class token and the mean of the patches together" if inputs == 2 * width else ""
        raise BackboneError(
            f"{where} is a head that reads {inputs} values{twice}, the backbone gives {width}: give the backbone whose"
            " features it was fitted on"
        )
    return head


def checkpoint_notes(found: Found, head: Head, pool: str) -> Iterator[str]:
    """What a checkpoint with its head does not say, and how it was taken; `pool` is how the backbone pools."""
    if found.others:
        taken = found.prefix.removesuffix(".") or "those without a prefix"
        yield f"it holds weights of {taken} and of {', '.join(found.others)}: the first were taken"
    if head.outside:
        yield f"its head {head.name} is taken to read what the backbone gives, which pools by '{pool}'"
    if head.left_out:
        more = f" and {len(head.left_out) - SHOWN} more" if len(head.left_out) > SHOWN else ""
        yield (
            f"left out, since it is neither backbone nor head: {', '.join(head.left_out[:SHOWN])}{more}; if it"
            " normalises images give --preprocess, if it scales the answer multiply the head by it"
        )
    yield from _bias_notes(head)


def _bias_notes(head: Head) -> Iterator[str]:
    if not head.has_bias:
        yield f"{head.name or 'its head'} has no bias: zeros are taken"


def _is_small(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are a layer or a few, with no transformer among them."""
    return not any(re.search(r"(^|\.)blocks\.|layer|encoder|patch_embed", name) for name in tensors)


def _attributes(file: Path, option: str) -> dict[str, NDArray[Any]] | None:
    """The attributes of scikit-learn's that a file holds; None if it holds no coefficients."""
    match kind_of(file, option):
        case "npz":
            with np.load(file, allow_pickle=False) as content:
                if "coef_" not in content.files:
                    return None
                try:
                    return {name: content[name] for name in content.files}
                except ValueError:
                    raise BackboneError(
                        f"{option} {file} holds pickled objects: save text with classes_=model.classes_.astype(str)"
                    ) from None
        case "json":
            try:
                content = read_json(file)
                return {name: np.asarray(value) for name, value in content.items()} if "coef_" in content else None
            except (ValueError, TypeError, AttributeError):
                raise BackboneError(f"{option} {file} holds no coefficients that can be read: save it again") from None
        case _:
            tensors = read_tensors(file, option)
            return {name: value.numpy() for name, value in tensors.items()} if "coef_" in tensors else None


def _text(name: Any) -> str:
    return decode_text(name) if isinstance(name, bytes) else str(name)


def _of_scikit_learn(arrays: Mapping[str, NDArray[Any]], where: str) -> HeadAlone:
    """A head of a linear classifier's attributes.

    Raises:
        BackboneError: an attribute is not known, or does not fit the others.
    """
    odd = sorted(arrays.keys() - KNOWN - IDLE)
    if odd:
        raise BackboneError(
            f"{where} holds {', '.join(odd)}, which cannot be kept: fit it on the features"
            " themselves or behind a StandardScaler, and save its coef_, intercept_, classes_, and the scaler's mean_"
            " and scale_"
        )
    try:
        weight = np.atleast_2d(arrays["coef_"].astype(np.float64))
        bias = np.broadcast_to(np.asarray(arrays.get("intercept_", 0.0), dtype=np.float64), len(weight))
        weight = weight / np.broadcast_to(arrays.get("scale_", np.float64(1)), weight.shape[1])
        bias = bias - weight @ np.broadcast_to(arrays.get("mean_", np.float64(0)), weight.shape[1])
    except ValueError:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in arrays.items() if name in KNOWN)
        raise BackboneError(f"{where} holds arrays that do not fit each other: {shapes}; save it again") from None
    binary = len(weight) == 1
    if binary:
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros(1), bias])
    classes = tuple(map(_text, arrays.get("classes_", np.empty(0)).ravel()))
    if classes and len(classes) != len(weight):
        raise BackboneError(
            f"{where} has {len(classes)} classes_ for {len(weight)} rows of coefficients: only classifiers with one row"
            " for each class can be kept, such as LogisticRegression"
        )
    said = "as one row of a sigmoid" if binary else "as rows of a softmax"
    notes = [
        f"coef_ is read {said}, as LogisticRegression does; other classifiers give the same answers with other"
        " probabilities"
    ]
    if arrays.keys() & {"mean_", "scale_"}:
        notes.append(SCALED)
    tensors = {
        name: torch.from_numpy(value.astype(np.float32)) for name, value in zip(HEAD, (weight, bias), strict=True)
    }
    return HeadAlone(tensors, classes, tuple(notes))
