"""What a checkpoint of torch holds beside its tensors: class names, and the settings that its training was given."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.ordered_names import KEYS, ordered
from mosa_deploy.backbones.containers import locate, read_torch
from mosa_deploy.backbones.file_kinds import kind_of

OPTION = "--from timm"

SETTINGS = ("hyper_parameters", "hparams", "config", "cfg", "args", "model_args", "model_kwargs", "model_config")
"""What training scripts call the settings that they save, Lightning's first."""

FUNCTION = ("global_pool", "fc_norm", "act_layer", "pool_include_prefix")
"""Arguments of timm's models that no tensor shows, by the names that people keep for them."""

UNCERTAIN = (
    "img_size", "image_size", "input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "image_mean",
    "image_std", "num_heads",
)  # fmt: skip
"""Settings of which nobody knows what a script did with them."""


LISTS = (Mapping, list, tuple, set, frozenset, np.ndarray)
"""What class names may lie in."""

PROBLEMS = ("problem_type", "problem", "task", "task_type", "mode", "objective")

OTHER_PROBLEM = re.compile(r"multi[-_ ]?label([-_ ]classification)?|regression", re.IGNORECASE)

MULTI_LABEL = re.compile(r"(is_)?multi_?label", re.IGNORECASE)

LOSS = re.compile(r"loss|criterion", re.IGNORECASE)

SIGMOID = re.compile(r"bce|binary_?cross_?entropy|sigmoid", re.IGNORECASE)


def read_entries(path: Path) -> dict[str, Any]:
    """What a checkpoint of torch holds; nothing if it is none."""
    content = None
    # What cannot be read is said where the tensors are taken.
    with contextlib.suppress(Exception):
        file = locate(path, OPTION)
        if kind_of(file, OPTION) == "torch":
            content = read_torch(file, OPTION)
    return content if isinstance(content, dict) else {}


def entry_names(entries: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...] | str, str]]:
    """Class names in a checkpoint, or why they cannot be taken, and under which key they lie."""
    places = [("", entries), *((f"{key}.", settings) for key, settings in _settings(entries))]
    for outer, place in places:
        for key in KEYS:
            try:
                yield ordered(place.get(key)), outer + key
            except ValueError as error:
                if isinstance(place.get(key), LISTS):
                    yield str(error), outer + key


def other_problem(entries: Mapping[str, Any]) -> str | None:
    """What a checkpoint says of a problem with several classes per image, or of regression."""
    for name, value in _said(entries):
        if MULTI_LABEL.fullmatch(name) and isinstance(value, bool | int) and value:
            return f"{name} {value}"
        if name in PROBLEMS and isinstance(value, str) and OTHER_PROBLEM.fullmatch(value):
            return f"{name} {value}"
    return None


def sigmoid_loss(entries: Mapping[str, Any]) -> str | None:
    """The setting by which each output of a checkpoint was trained by itself, with a sigmoid."""
    for name, value in _said(entries):
        said = value if isinstance(value, str) else type(value).__name__
        if LOSS.search(name) and SIGMOID.search(said):
            return f"{name} {said}"
    return None


def function_settings(entries: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """The arguments of a model of timm in the settings of a checkpoint, and under which key these lie."""
    for key, settings in _settings(entries):
        found = {name: value for name, value in _flat(settings) if name in FUNCTION}
        if isinstance(found.get("global_pool"), bool):  # As MAE's script has it.
            found["global_pool"] = "avg" if found["global_pool"] else "token"
        if found:
            yield found, key


def uncertain_settings(entries: Mapping[str, Any]) -> str:
    """What the settings of a checkpoint say of how images were read, and of the model, that may mean other things."""
    said = {
        name: value for _, settings in _settings(entries) for name, value in _flat(settings, plain=False)
        if name in UNCERTAIN
    }  # fmt: skip
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _settings(entries: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key in SETTINGS:
        value = entries.get(key)
        settings = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
        # Those of timm's own script, with its model's name and pooling, are read as such.
        if isinstance(settings, Mapping) and "gp" not in settings:
            yield key, settings


def _said(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting in a checkpoint, whatever it is called and whatever it lies in."""
    for place in (entries, *(settings for _, settings in _settings(entries))):
        yield from _walked(place)


def _walked(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings within settings too; weights, and what optimisers hold, are none."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and not any(hasattr(each, "dtype") for each in value.values()):
            yield from _walked(value)
        else:
            yield str(name), value


def _flat(settings: Mapping[str, Any], plain: bool = True) -> Iterator[tuple[str, Any]]:
    """Settings within settings too; only names, numbers and booleans if `plain`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, plain)
        elif isinstance(value, str | int | float | bool) or (not plain and isinstance(value, list | tuple)):
            yield str(name), value
