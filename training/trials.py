"""The settings that `training.compare` tries: the same number for every method, around what suits the backbone.

The learning rate and the scale of the first trial are those that the user or the file of tasks gives, else those of the
preset. Methods that have a scale or a rate of their own start there; on other backbones than the embedded one a
low-rank method starts at `LOW_RANK_LR` times the learning rate. Further trials multiply both.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sklearn.model_selection import ParameterGrid, ParameterSampler

from mosa_deploy.backbones.names import is_embedded
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, LOW_RANK_METHODS
from training.config import TuneConfig
from training.method_settings import OF_STYLE, usual_settings
from training.recipe import Recipe

Setting = tuple[tuple[str, Any], ...]
"""Changes to the centre, sorted by name: factors for `lr` and `scale`, values for everything else. () is the centre."""

FACTORS: dict[str, Sequence[float]] = {"lr": (1.0, 0.5, 2.0), "scale": (1.0, 0.25, 4.0)}
OWN: dict[str, dict[str, Sequence[Any]]] = {
    "adapter": {"consistency": (1.0, 0.3)},
    "lora": {"consistency": (1.0, 0.3)},
    "repadapter": {"consistency": (1.0, 0.3)},
    "mosa": {"experts": (2, 4)},
    "mosl": {"experts": (2, 4)},
    "linear": {"features": ("cls", "cls+mean", "blocks")},
}
"""Method -> one option that only this method tries, with the usual value first."""

SCALED: dict[str, tuple[str, ...]] = {
    "linear": (),
    "auto": (),
    **dict.fromkeys(("attentive", "ssf", *BACKBONE_METHODS), ("lr",)),
}
"""Method -> what its trials multiply, unless that is both lr and scale. The linear probe and `auto` try settings by
themselves, of C and of everything."""

LOW_RANK_LR = 0.4
"""On DINOv2 ViT-S/14 the best rate of LoRA on the development tasks, 2e-3, is so many times that of adapters."""


def centre(config: TuneConfig, preset: Recipe) -> Recipe:
    """The settings around which a method is tried: those of the preset, with lr and scale for the method."""
    backbone = config.backbone or preset.backbone
    usual = usual_settings(config.method, toy=is_embedded(backbone)) | OF_STYLE.get(config.style or "", {})
    lr, scale = config.lr or usual.get("lr", preset.lr), usual.get("scale", config.scale or preset.scale)
    if config.method in LOW_RANK_METHODS and not is_embedded(backbone):
        lr *= LOW_RANK_LR
    return dataclasses.replace(preset, backbone=backbone, lr=lr, scale=scale)


def settings(method: str, trials: int, centre: Recipe) -> list[Setting]:
    """Up to `trials` settings: the centre, the centre with the method's own option changed, then random ones.

    Every method draws the same lr and scale.
    """
    factors, own = factors_of(method), OWN.get(method, {})
    space = factors | own
    drawn = ParameterSampler(space, min(trials, len(ParameterGrid(space))), random_state=0)
    points = [*ParameterGrid(dict.fromkeys(factors, (1.0,)) | own), *drawn]
    found = dict.fromkeys([(), *(changes(method, point, centre) for point in points)])
    return list(found)[:trials]


def factors_of(method: str) -> dict[str, Sequence[float]]:
    """What the trials of a method multiply, and by how much."""
    return {name: FACTORS[name] for name in SCALED.get(method, tuple(FACTORS))}


def changes(method: str, point: Mapping[str, Any], centre: Recipe) -> Setting:
    """The settings in which a point of the search space differs from the centre."""
    usual = {name: values[0] for name, values in (factors_of(method) | OWN.get(method, {})).items()}
    usual |= {name: getattr(centre, name) for name in OWN.get(method, {}) if hasattr(centre, name)}
    return tuple((name, value) for name, value in sorted(point.items()) if value != usual[name])


def label(setting: Setting) -> str:
    """A setting as the name of a folder, e.g. `experts-2-lr-x2`."""
    words = [(name, f"{value:g}" if isinstance(value, float) else value) for name, value in setting]
    return "-".join(f"{name}-{'x' if name in FACTORS else ''}{value}" for name, value in words) or "preset"


def flags(method: str, setting: Setting, centre: Recipe) -> dict[str, Any]:
    """The lr and scale of a trial, and what else its setting changes, as fields of `TuneConfig`."""
    factors = factors_of(method)
    given = dict(setting)
    own = {name: value for name, value in setting if name not in factors}
    return own | {name: getattr(centre, name) * given.get(name, 1.0) for name in factors}
