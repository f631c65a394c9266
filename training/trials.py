"""The settings that `training.compare` tries: the same number for every method, around each task's preset."""

from collections.abc import Mapping, Sequence
from typing import Any

from sklearn.model_selection import ParameterGrid, ParameterSampler

from training.config import Recipe

Setting = tuple[tuple[str, Any], ...]
"""Changes to a preset, sorted by name: factors for `lr` and `scale`, values for everything else. () is the preset."""

FACTORS: dict[str, Sequence[float]] = {"lr": (1.0, 0.5, 2.0), "scale": (1.0, 0.25, 4.0)}
OWN: dict[str, dict[str, Sequence[float]]] = {
    "adapter": {"consistency": (1.0, 0.3)},
    "lora": {"consistency": (1.0, 0.3)},
    "mosa": {"experts": (2, 4)},
    "mosl": {"experts": (2, 4)},
}
"""Method -> one option that only this method tries, with the preset's value first."""


def settings(method: str, trials: int, preset: Recipe) -> list[Setting]:
    """Up to `trials` settings: the preset, the preset with the method's own option changed, then random ones.

    Every method draws the same lr and scale. The linear probe has one setting: it tries its values of C by itself.
    """
    if method == "linear":
        return [()]
    space = FACTORS | OWN[method]
    drawn = ParameterSampler(space, min(trials, len(ParameterGrid(space))), random_state=0)
    points = [*ParameterGrid(dict.fromkeys(FACTORS, (1.0,)) | OWN[method]), *drawn]
    found = dict.fromkeys([(), *(changes(point, preset) for point in points)])
    return list(found)[:trials]


def changes(point: Mapping[str, float], preset: Recipe) -> Setting:
    """The settings in which a point of the search space differs from the preset."""
    return tuple(
        (name, value)
        for name, value in sorted(point.items())
        if value != (1.0 if name in FACTORS else getattr(preset, name))
    )


def label(setting: Setting) -> str:
    """A setting as the name of a folder, e.g. `experts-2-lr-x2`."""
    words = [(name, f"{value:g}" if isinstance(value, float) else value) for name, value in setting]
    return "-".join(f"{name}-{'x' if name in FACTORS else ''}{value}" for name, value in words) or "preset"


def flags(setting: Setting, preset: Recipe) -> dict[str, Any]:
    """The setting as fields of `TuneConfig`."""
    return {name: value * getattr(preset, name) if name in FACTORS else value for name, value in setting}
