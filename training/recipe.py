"""The recipe of a run: every setting that decides what is tuned and how, checked in one place."""

import math
from dataclasses import dataclass, replace

from mosa_deploy.bundles.adapter_config import Activation, AdapterConfig, Share, Style, Target
from mosa_deploy.errors import ConfigError, unknown_name
from training.recipes import RecipeName
from training.tune_options import SCHEDULES, Augment, Balance, Loss, Select


@dataclass(frozen=True)
class Recipe:
    """The settings that tune a task. Every task comes with one as its preset."""

    backbone: str
    bottleneck: int = AdapterConfig.bottleneck
    experts: int = AdapterConfig.experts
    share: Share = AdapterConfig.share
    scale: float = AdapterConfig.scale
    style: Style = AdapterConfig.style
    targets: tuple[Target, ...] = AdapterConfig.targets
    """The parts of each block that a low-rank method updates."""
    groups: int | None = AdapterConfig.groups
    dropout: float = AdapterConfig.dropout
    epochs: int = 20
    batch_size: int = 64
    lr: float = 5e-3
    weight_decay: float = 0.01
    warmup_epochs: float = 2.0
    passes: int = 2
    """Forward passes per batch; with two, the consistency loss keeps their predictions close."""
    consistency: float = 1.0
    """Weight of the consistency loss."""
    merge_scale: str = "expectation"
    """expectation, learned or a number; see `training.merge_scale`."""
    dense_epochs: int = 0
    """The number of final epochs that train all experts at once, as the merged adapter."""
    activate: Activation = AdapterConfig.activate
    """How experts are drawn; see `AdapterConfig`."""
    adapt_blocks: int | None = None
    """The number of last blocks that have adapters; None is all of them."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is what is selected and saved; 0 keeps none."""
    recipe: RecipeName = "ours"
    """Where settings that no option gives came from, and the conventions of `training.recipes`."""
    balance: Balance = "none"
    """Whether all classes weigh the same, in the loss or by how often they are drawn."""
    select: Select = "accuracy"
    """What chooses the best epoch on validation."""
    loss: Loss = "ce"
    """What is minimised; `ce` is for one class per image, all others for several labels."""

    augment: Augment = "none"
    """How training images are changed; see `AugmentOptions`, also for the next three."""
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    opt: str = "adamw"
    """timm's name of the optimiser."""
    sched: str = "cosine"
    """timm's name of the schedule."""
    clip_grad: float = 0.0
    """The largest norm of the gradient; 0 does not clip it."""
    patience: int = 0
    """Epochs in a row without an improvement on validation after which the run stops; 0 runs all epochs."""
    head_dropout: float = 0.0
    head_samples: int = 1
    """Dropout samples of the head that share one pass through the backbone (arXiv 1905.09788)."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the one before it."""
    drop_path: float = 0.0
    """Stochastic depth of the last block (arXiv 1603.09382)."""

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.loss != "ce"


def with_labels(recipe: Recipe) -> Recipe:
    """The same settings for several labels per image."""
    return replace(recipe, loss="bce", select="map")


MERGE_SCALES = ("expectation", "learned")

MAX_SAMPLES = 64
"""The largest number of dropout samples of the head."""


def recipe_faults(recipe: Recipe) -> list[str]:
    """One text for each fault of a recipe; empty if it has none."""
    checks = {
        "epochs": (recipe.epochs >= 1, "at least 1"),
        "batch_size": (recipe.batch_size >= 1, "at least 1"),
        "lr": (0 < recipe.lr < math.inf, "above 0"),
        "passes": (recipe.passes in (1, 2), "1 or 2"),
        "consistency": (0 <= recipe.consistency < math.inf, "at least 0"),
        **{name: (0 <= getattr(recipe, name) <= 1, "0 to 1") for name in ("erase",)},
        **{name: (0 <= getattr(recipe, name) < math.inf, "at least 0") for name in ("mixup", "cutmix", "clip_grad")},
        **{name: (0 <= getattr(recipe, name) < 1, "at least 0, below 1") for name in ("head_dropout", "drop_path")},
        "patience": (recipe.patience >= 0, "at least 0"),
        "head_samples": (1 <= recipe.head_samples <= MAX_SAMPLES, f"1 to {MAX_SAMPLES}"),
        "layer_decay": (0 < recipe.layer_decay <= 1, "above 0, at most 1"),
        "dense_epochs": (0 <= recipe.dense_epochs <= recipe.epochs, f"0 to {recipe.epochs}, the epochs"),
    }
    faults = [] if 0 <= recipe.ema < 1 else [f"--ema-decay {recipe.ema}: at least 0, below 1"]
    faults += [f"{flag(name)} {getattr(recipe, name)}: {text}" for name, (holds, text) in checks.items() if not holds]
    if recipe.sched not in SCHEDULES:
        faults.append(unknown_name("schedule", recipe.sched, SCHEDULES))
    if recipe.head_samples > 1 and recipe.head_dropout == 0:
        faults.append(f"--head-samples {recipe.head_samples}: without --head-dropout all samples are the same")
    if recipe.patience and recipe.dense_epochs:
        faults.append("--patience excludes --dense-epochs: the run might end before them")
    faults += label_faults(recipe)
    try:
        adapter_config(recipe)
    except ConfigError as error:
        faults.append(str(error))
    if recipe.batch_size == 1 and (recipe.mixup or recipe.cutmix):
        faults.append("--batch-size 1: --mixup and --cutmix need 2 images or more")
    return faults


def label_faults(recipe: Recipe) -> list[str]:
    """One text for each setting that does not fit the number of labels that an image may have."""
    if not recipe.multi_label:
        return ["--select map is for several labels per image: choose accuracy"] if recipe.select == "map" else []
    faults = []
    if recipe.balance != "none":
        faults.append(
            f"--balance {recipe.balance} is for one class per image: with several labels give --loss asymmetric"
        )
    if recipe.select in ("accuracy", "balanced"):
        faults.append(f"--select {recipe.select} is for one class per image: with several labels choose map or loss")
    mixing = [f"--{name} {value:g}" for name in ("mixup", "cutmix") if (value := getattr(recipe, name))]
    if mixing:
        faults.append(f"{', '.join(mixing)}: blends are of images with one class each, so drop it")
    return faults


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return f"--{name.replace('_', '-')}"


def adapter_config(recipe: Recipe) -> AdapterConfig:
    """The adapter's settings in a recipe. A learned merge scale is None (the expectation) until it is fitted.

    Raises:
        ConfigError: a setting is out of range; lists every fault at once.
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
        activate=recipe.activate,
        blocks=recipe.adapt_blocks,
        groups=recipe.groups,
    )


def merge_scale(text: str) -> float:
    """Read a merge scale that is given as a number.

    Raises:
        ConfigError: the text is no number.
    """
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--merge-scale {text}: choose {', '.join(MERGE_SCALES)} or a number") from None
