"""The settings of a run: what the command line takes, and what a task's preset makes of it."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from mosa_deploy.bundles.adapter_config import (
    LOW_RANK_METHODS,
    SEQUENTIAL_STYLES,
    SPLIT_METHODS,
    AdapterConfig,
    Method,
    Share,
    Style,
    Target,
)
from mosa_deploy.bundles.format_version import VERSION_KEY, Fields, FileFormat
from mosa_deploy.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Recipe:
    """How a task is tuned; each task's preset is one."""

    backbone: str
    bottleneck: int = AdapterConfig.bottleneck
    experts: int = AdapterConfig.experts
    share: Share = AdapterConfig.share
    scale: float = AdapterConfig.scale
    style: Style = AdapterConfig.style
    targets: tuple[Target, ...] = AdapterConfig.targets
    """The parts of each block that a low-rank method updates."""
    dropout: float = AdapterConfig.dropout
    epochs: int = 20
    batch_size: int = 64
    lr: float = 5e-3
    weight_decay: float = 0.01
    warmup_epochs: float = 2.0
    passes: int = 2
    """Stochastic passes of each batch; two are held together by the consistency loss."""
    consistency: float = 1.0
    """Weight of the consistency loss."""
    merge_scale: str = "expectation"
    """expectation, learned or a number, see `training.merge_scale`."""
    dense_epochs: int = 0
    """The last epochs, in which the merged adapter is trained densely."""


SPLIT_ONLY: dict[str, Any] = {
    "experts": 1,
    "share": AdapterConfig.share,
    "merge_scale": "expectation",
    "dense_epochs": 0,
}
"""The settings that only methods with experts take, each with its value for the other methods."""

METHODS_OF: dict[str, tuple[Method, ...]] = {
    **dict.fromkeys(SPLIT_ONLY, SPLIT_METHODS),
    "targets": LOW_RANK_METHODS,
    "style": ("adapter", "mosa"),
}
"""The methods that take a setting, for settings that not every method takes."""

GROUPS = {
    " and ".join(methods): [name for name, taken in METHODS_OF.items() if taken == methods]
    for methods in dict.fromkeys(METHODS_OF.values())
}
"""Headings of the help for settings that only some methods take."""

LOW_RANK_SETTINGS: dict[str, Any] = {
    "bottleneck": AdapterConfig.bottleneck,
    "scale": 1.0,
    "style": "low-rank",
    "targets": ("q", "v"),
}
"""The values with which a low-rank method replaces those of the task's preset."""

MERGE_SCALES = ("expectation", "learned")


@dataclass(frozen=True)
class TuneConfig:
    """Tune one task's adapter and head on a frozen timm vision transformer.

    Whatever is left out comes from the task's preset.
    """

    task: str
    """digits, sprites-location, sprites-orientation, cifar10, eurosat, or folder for images of your own."""
    name: str | None = None
    """What the tuned task is called in its run and in the service; the task's own name if left out."""
    backbone: str | None = None
    """Name of a plain timm ViT or Swin, e.g. vit_base_patch16_224.augreg_in21k."""
    backbone_weights: Path | None = None
    """A .safetensors, .npz or torch (.pth, .pt, .bin, .tar) file instead of timm's hub."""
    random_weights: bool = False
    """Random weights: a trial run that fetches nothing."""
    method: str = "mosa"
    """mosa, adapter (the dense one), mosl (split LoRA), lora, or linear (logistic regression on frozen features)."""
    bottleneck: int | None = None
    """r, the adapter's inner width, or the rank of a low-rank one."""
    experts: int | None = None
    """E, the number of sparse parts of each split projection."""
    share: str | None = None
    """The projection that stays dense: down, up or none."""
    scale: float | None = None
    """s, by which the adapter's output is multiplied."""
    style: str | None = None
    """mosa, adapter: parallel, which can be folded, or pfeiffer or houlsby, which are exported unfolded."""
    targets: tuple[Target, ...] | None = None
    """mosl, lora: the parts of each block to update, of q, k, v, qkv, proj, fc1, fc2; q and v if left out."""
    epochs: int | None = None
    """Passes over the training images."""
    batch_size: int | None = None
    """Halve it if the GPU runs out of memory."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    passes: int | None = None
    """Stochastic passes of each batch, 1 or 2; two are held together by the consistency loss."""
    consistency: float | None = None
    """Weight of the consistency loss of two passes."""
    merge_scale: str | None = None
    """mosa, mosl: the factor by which merging multiplies the sum of the experts: expectation (1 / E), learned (fitted
    on validation) or a number."""
    dense_epochs: int | None = None
    """mosa, mosl: the last epochs, in which the merged adapter is trained densely."""
    precision: str = "auto"
    """Precision of the training steps: bf16, fp32 or auto, which is bf16 on CUDA; validation is in fp32."""
    image_size: int | None = None
    """Side of the input in pixels, if it is not to be the backbone's own."""
    seed: int = 0
    """All randomness of the run derives from it."""
    data_dir: Path | None = None
    """The folder, or the tar archive, that holds the task's images."""
    split: str | None = None
    """folder, eurosat: percentages such as 80-10-10; eurosat: vtab, full, or a file of lines
    `train|validation|test <class>/<file>`."""
    out: Path | None = None
    """The run's folder; runs/<task> if left out."""
    resume: bool = False
    """Go on with the run in --out after its last finished epoch."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def checked_method(self) -> Method:
        """Raises ConfigError, with the nearest names, if there is no such method to tune by."""
        known = [method for method in get_args(Method) if method != "full"]
        if self.method not in known:
            raise ConfigError(unknown_name("method", self.method, known))
        return cast(Method, self.method)

    def recipe(self, preset: Recipe) -> Recipe:
        """The preset with this command line's changes; `adapter` and `lora` have one expert.

        Raises:
            ConfigError: every fault at once.
        """
        fields = {field.name for field in dataclasses.fields(Recipe)}
        given = {name: value for name, value in vars(self).items() if name in fields and value is not None}
        refused = [name for name, methods in METHODS_OF.items() if name in given and self.method not in methods]
        faults = [
            f"{flag(name)} is an option of --method {' and '.join(METHODS_OF[name])}: drop it" for name in refused
        ]
        if self.image_size is not None and self.image_size < 1:
            faults.append(f"--image-size {self.image_size}: at least 1, in whole patches")
        if self.style == "low-rank" and "style" not in refused:
            faults.append("--style low-rank: choose --method lora or mosl")
            refused.append("style")
        usual: dict[str, Any] = {"scale": 1.0} if self.style in SEQUENTIAL_STYLES else {}
        if self.method in LOW_RANK_METHODS:
            usual = LOW_RANK_SETTINGS
        settings = usual | {name: value for name, value in given.items() if name not in refused}
        recipe = dataclasses.replace(preset, **settings | ({} if self.method in SPLIT_METHODS else SPLIT_ONLY))
        faults += recipe_faults(recipe)
        if faults:
            raise ConfigError("; ".join(faults))
        return recipe


def recipe_faults(recipe: Recipe) -> list[str]:
    """Everything that is wrong with a recipe, one text per fault."""
    checks = {
        "epochs": (recipe.epochs >= 1, "at least 1"),
        "batch_size": (recipe.batch_size >= 1, "at least 1"),
        "lr": (0 < recipe.lr < math.inf, "above 0"),
        "passes": (recipe.passes in (1, 2), "1 or 2"),
        "consistency": (0 <= recipe.consistency < math.inf, "at least 0"),
        "dense_epochs": (0 <= recipe.dense_epochs <= recipe.epochs, f"0 to {recipe.epochs}, the epochs"),
    }
    faults = [f"{flag(name)} {getattr(recipe, name)}: {text}" for name, (holds, text) in checks.items() if not holds]
    try:
        adapter_config(recipe)
    except ConfigError as error:
        faults.append(str(error))
    return faults


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return f"--{name.replace('_', '-')}"


def adapter_config(recipe: Recipe) -> AdapterConfig:
    """The adapter's settings in a recipe; a learned merge scale is None, the expectation, until it is fitted.

    Raises:
        ConfigError: every fault at once.
    """
    return AdapterConfig(
        bottleneck=recipe.bottleneck,
        experts=recipe.experts,
        share=recipe.share,
        scale=recipe.scale,
        dropout=recipe.dropout,
        merge_scale=None if recipe.merge_scale in MERGE_SCALES else merge_scale(recipe.merge_scale),
        style=recipe.style,
        targets=recipe.targets,
    )


def merge_scale(text: str) -> float:
    """A merge scale given as text; raises ConfigError if it is no number."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--merge-scale {text}: choose {', '.join(MERGE_SCALES)} or a number") from None


def state_version(fields: Fields) -> Fields:
    """Version 2 of `config.json` states its version, which is all that is new."""
    return fields


RUN_FORMAT = FileFormat(
    "config.json",
    ConfigError,
    remedy="copy the run again, or tune the task into another --out",
    migrations=(state_version,),
    unstated=1,
)


def describe(config: TuneConfig, recipe: Recipe, precision: str) -> str:
    """The text of `config.json`: everything that decides the run's result, and where its images were."""
    settings = {
        VERSION_KEY: RUN_FORMAT.newest,
        "task": config.task,
        "name": config.name,
        "method": config.method,
        "seed": config.seed,
        "split": config.split,
        "precision": precision,
        "image_size": config.image_size,
        "random_weights": config.random_weights,
        "backbone_weights": config.backbone_weights and str(config.backbone_weights),
        "data_dir": config.data_dir and str(config.data_dir),
        **dataclasses.asdict(recipe),
    }
    return json.dumps(settings, indent=2) + "\n"


def parse_settings(content: str | bytes, where: str) -> Fields:
    """The settings in a `config.json` of any version; errors call it `where`.

    Raises:
        ConfigError: it is damaged, or was written by a newer release.
    """
    try:
        return RUN_FORMAT.upgrade(json.loads(content), where)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{where} is damaged ({type(error).__name__}): {RUN_FORMAT.remedy}") from None


def differences(before: Fields, after: Fields) -> list[str]:
    """The settings in which two runs differ, in words."""
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} was {before.get(name)}, is {after.get(name)}" for name in names if before.get(name) != after.get(name)
    ]
