"""What a checkpoint of torch holds beside its tensors: class names, and the settings that its training was given."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


def read_entries(path: Path) -> dict[str, Any]:
    """What a checkpoint of torch holds; nothing if it is none."""
    content = None
    # What cannot be read is said where the tensors are taken.
    with contextlib.suppress(Exception):
        file = locate(path, OPTION)
        if kind_of(file, OPTION) == "torch":
            content = read_torch(file, OPTION)
    return content if isinstance(content, dict) else {}


def entry_names(entries: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Class names in a checkpoint, and under which key they lie."""
    places = [("", entries), *((f"{key}.", settings) for key, settings in _settings(entries))]
    for outer, place in places:
        for key in KEYS:
            with contextlib.suppress(ValueError):
                yield ordered(place.get(key)), outer + key


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


def _flat(settings: Mapping[str, Any], plain: bool = True) -> Iterator[tuple[str, Any]]:
    """Settings within settings too; only names, numbers and booleans if `plain`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, plain)
        elif isinstance(value, str | int | float | bool) or (not plain and isinstance(value, list | tuple)):
            yield str(name), value
