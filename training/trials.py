"""The settings that `training.compare` tries: the same number for every method, around what suits the backbone.

The learning rate and the scale of the first trial are those that the user or the file of tasks gives, else those of the
preset. On other backbones than the embedded one a low-rank method, whose scale is 1, starts at `LOW_RANK_LR` times that
learning rate. Further trials multiply both.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sklearn.model_selection import ParameterGrid, ParameterSampler

from mosa_deploy.bundles.adapter_config import LOW_RANK_METHODS
from training.config import Recipe, TuneConfig
from training.method_settings import LOW_RANK_SETTINGS
from training.presets import is_embedded

Setting = tuple[tuple[str, Any], ...]
"""Changes to the centre, sorted by name: factors for `lr` and `scale`, values for everything else. () is the centre."""

FACTORS: dict[str, Sequence[float]] = {"lr": (1.0, 0.5, 2.0), "scale": (1.0, 0.25, 4.0)}
OWN: dict[str, dict[str, Sequence[float]]] = {
    "adapter": {"consistency": (1.0, 0.3)},
    "lora": {"consistency": (1.0, 0.3)},
    "mosa": {"experts": (2, 4)},
    "mosl": {"experts": (2, 4)},
    "attentive": {},
}
"""Method -> one option that only this method tries, with the preset's value first."""

LOW_RANK_LR = 0.3
"""A LoRA of scale 1 moves a pre-trained transformer as far as an adapter of scale 0.1 at about three times the rate."""


def centre(config: TuneConfig, preset: Recipe) -> Recipe:
    """The settings around which a method is tried: those of the preset, with lr and scale for the method."""
    backbone = config.backbone or preset.backbone
    lr, scale = config.lr or preset.lr, config.scale or preset.scale
    if config.method in LOW_RANK_METHODS:
        lr, scale = lr * (1.0 if is_embedded(backbone) else LOW_RANK_LR), LOW_RANK_SETTINGS["scale"]
    return dataclasses.replace(preset, backbone=backbone, lr=lr, scale=scale)


def settings(method: str, trials: int, centre: Recipe) -> list[Setting]:
    """Up to `trials` settings: the centre, the centre with the method's own option changed, then random ones.

    Every method draws the same lr and scale. The linear probe has one setting: it tries its values of C by itself.
    """
    if method == "linear":
        return [()]
    factors = {"lr": FACTORS["lr"]} if method == "attentive" else FACTORS
    space = factors | OWN[method]
    drawn = ParameterSampler(space, min(trials, len(ParameterGrid(space))), random_state=0)
    points = [*ParameterGrid(dict.fromkeys(FACTORS, (1.0,)) | OWN[method]), *drawn]
    found = dict.fromkeys([(), *(changes(point, centre) for point in points)])
    return list(found)[:trials]


def changes(point: Mapping[str, float], centre: Recipe) -> Setting:
    """The settings in which a point of the search space differs from the centre."""
    return tuple(
        (name, value)
        for name, value in sorted(point.items())
        if value != (1.0 if name in FACTORS else getattr(centre, name))
    )


def label(setting: Setting) -> str:
    """A setting as the name of a folder, e.g. `experts-2-lr-x2`."""
    words = [(name, f"{value:g}" if isinstance(value, float) else value) for name, value in setting]
    return "-".join(f"{name}-{'x' if name in FACTORS else ''}{value}" for name, value in words) or "preset"


def flags(setting: Setting, centre: Recipe) -> dict[str, Any]:
    """The lr and scale of a trial, and what else its setting changes, as fields of `TuneConfig`."""
    own = {name: value for name, value in setting if name not in FACTORS}
    factors = {name: value for name, value in setting if name in FACTORS}
    return own | {name: getattr(centre, name) * factors.get(name, 1.0) for name in FACTORS}
