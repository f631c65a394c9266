"""Recipes to choose by `--recipe`: ours, that of the MoSA paper, and the paper's with the habits of its code.

A recipe has settings, which options replace, and conventions, which no option changes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from training.method_settings import UNCHANGED

RecipeName = Literal["ours", "paper", "reference"]

PAPER: dict[str, Any] = {
    "bottleneck": 16,
    "experts": 4,
    "share": "down",
    "activate": "per-pass",
    "merge_scale": "expectation",
    "dense_epochs": 0,
    "scale": 0.1,
    "dropout": 0.1,
    "epochs": 100,
    "warmup_epochs": 10.0,
    "batch_size": 128,
    "lr": 5e-3,
    "weight_decay": 0.01,
    "passes": 2,
    "consistency": 1.0,
    "ema": 0.0,
    "adapt_blocks": None,
    "opt": "adamw",
    "sched": "cosine",
    "clip_grad": 0.0,
    "patience": 0,
    "head_dropout": 0.0,
    "head_samples": 1,
    **UNCHANGED,
}
"""The paper's settings for VTAB, arXiv 2312.02923. It does not say the scale, which is AdaptFormer's."""

SETTINGS: dict[RecipeName, dict[str, Any]] = {"ours": {}, "paper": PAPER, "reference": PAPER}
"""Recipe -> the settings that take the place of those of the task's preset."""


@dataclass(frozen=True)
class Conventions:
    """What a recipe fixes beside its settings."""

    head_bias: float | None = None
    """The head starts kaiming-normal (fan out) with this bias; None is timm's start."""
    images: Mapping[str, Any] = field(default_factory=dict)
    """What takes the place of entries in timm's data config of the backbone."""
    backbone_dropout: float = 0.0
    """Dropout inside the frozen backbone in training."""
    lr_per_epoch: bool = False
    """The learning rate changes per epoch, and is zero in the first one; otherwise it changes with every step."""
    steps_per_expert: bool = False
    """AdamW counts its steps for each expert, and decays D0 + Delta; see `training.reference`."""


SQUASHED: dict[str, Any] = {"crop_mode": "squash", "crop_pct": 1.0}
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

CONVENTIONS: dict[RecipeName, Conventions] = {
    "ours": Conventions(),
    "paper": Conventions(head_bias=-math.log(99), images=SQUASHED),
    "reference": Conventions(
        head_bias=-4.6,
        images=SQUASHED | IMAGENET,
        backbone_dropout=0.1,
        lr_per_epoch=True,
        steps_per_expert=True,
    ),
}

CROPPED: dict[str, Any] = {"bottleneck": 64, "augment": "crop"}
"""What the paper does otherwise on data sets with all of their images. It resizes to 256 and cuts 224 out at random,
which `crop` is near to: it also changes the size of what it cuts out."""

MIDDLE: dict[str, Any] = {"crop_mode": "center", "crop_pct": 0.875}
"""How those images are read where nothing is random: 224 of 256 pixels."""

OF_TASK: dict[str, dict[str, Any]] = {
    "fgvc/cub": CROPPED | {"lr": 1e-3},
    **dict.fromkeys(("fgvc/nabirds", "fgvc/dogs", "gicd/cifar100", "gicd/food101"), CROPPED | {"lr": 5e-4}),
    **dict.fromkeys(("fgvc/flowers", "gicd/aircraft"), CROPPED | {"lr": 5e-3}),
    "fgvc/cars": CROPPED | {"lr": 5e-3, "experts": 2, "share": "up"},
}
"""Task -> the settings in which the paper's recipe for it is not that for VTAB."""


def settings_of(name: str, task: str) -> dict[str, Any]:
    """The settings of a recipe for a task."""
    known: dict[str, dict[str, Any]] = {str(each): settings for each, settings in SETTINGS.items()}
    return known[name] | (OF_TASK.get(task, {}) if name != "ours" else {})


def images_of(name: RecipeName, task: str) -> Mapping[str, Any]:
    """What a recipe puts in the place of entries in timm's data config."""
    images = CONVENTIONS[name].images
    return {**images, **MIDDLE} if name != "ours" and task in OF_TASK else images


def variant(task: str) -> str:
    """Which of the paper's recipes `paper` and `reference` are for a task."""
    if task not in OF_TASK:
        return "the VTAB variant: direct resize, no augmentation, r = 16, lr 5e-3"
    settings = PAPER | OF_TASK[task]
    return f"the variant for {task}: crops and flips, r = {settings['bottleneck']}, lr {settings['lr']:g}"


def remarks(name: RecipeName, given: Mapping[str, Any], task: str = "") -> list[str]:
    """What a run says of its recipe, in one line: its variant, and in what the given options depart from it."""
    if name == "ours":
        return []
    departures = [
        f"{setting.replace('_', ' ')} {given[setting]} instead of {value}"
        for setting, value in settings_of(name, task).items()
        if setting in given and given[setting] != value
    ]
    said = "departures: " + ", ".join(departures) if departures else "no departures"
    return [f"recipe {name}, {variant(task)}; {said}"]
