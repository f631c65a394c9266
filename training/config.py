"""The settings of a run: what the command line takes, and what a task's preset makes of it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from mosa_deploy.config import AdapterConfig, Method, Share
from mosa_deploy.errors import ConfigError, one_of


@dataclass(frozen=True)
class Recipe:
    """How a task is tuned; each task's preset is one."""

    backbone: str
    bottleneck: int = 16
    experts: int = 4
    share: Share = "down"
    scale: float = 0.1
    dropout: float = 0.1
    epochs: int = 20
    batch_size: int = 64
    lr: float = 5e-3
    weight_decay: float = 0.01
    warmup_epochs: float = 2.0
    passes: int = 2
    """Stochastic passes of each batch; two are held together by the consistency loss."""


@dataclass(frozen=True)
class TuneConfig:
    """Tune one task's adapter and head on a frozen timm vision transformer.

    Whatever is left out comes from the task's preset.
    """

    task: str
    """digits, sprites-location, eurosat, or folder for images of your own."""
    name: str | None = None
    """What the tuned task is called in its run and in the service; the task's own name if left out."""
    backbone: str | None = None
    """Name of a plain timm ViT, e.g. vit_base_patch16_224.augreg_in21k."""
    backbone_weights: Path | None = None
    """A .safetensors or .npz file instead of timm's hub."""
    random_weights: bool = False
    """Random weights, to try the way without any."""
    method: str = "mosa"
    """mosa, adapter (the dense adapter) or linear (a logistic regression on the frozen features)."""
    bottleneck: int | None = None
    """r, the adapter's inner width."""
    experts: int | None = None
    """E, the number of sparse parts of each split projection."""
    share: str | None = None
    """The projection that stays dense: down, up or none."""
    scale: float | None = None
    """s, what the adapter's output is multiplied with."""
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    """Peak learning rate of AdamW."""
    seed: int = 0
    """All randomness of the run derives from it."""
    data_dir: Path | None = None
    """The folder that holds the task's images."""
    split: str | None = None
    """eurosat: vtab, full, 60-20-20, or a file of lines `train|validation|test <class>/<file>`."""
    out: Path | None = None
    """The run's folder; runs/<task> if left out."""
    resume: bool = False
    """Go on with the run in --out after its last finished epoch."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def checked_method(self) -> Method:
        """Raises ConfigError, with the nearest names, if there is no such method."""
        for method in get_args(Method):
            if method == self.method:
                return cast(Method, method)
        raise ConfigError(one_of("method", self.method, get_args(Method)))

    def recipe(self, preset: Recipe) -> Recipe:
        """The preset with this command line's changes; `adapter` is one expert and one pass.

        Raises:
            ConfigError: every fault at once.
        """
        names = {field.name for field in dataclasses.fields(Recipe)}
        given = {name: value for name, value in vars(self).items() if name in names and value is not None}
        recipe = dataclasses.replace(preset, **given)
        if self.method == "adapter":
            recipe = dataclasses.replace(recipe, experts=1, passes=1)
        faults = [
            f"--{name.replace('_', '-')} {value}: at least 1"
            for name, value in (("epochs", recipe.epochs), ("batch_size", recipe.batch_size))
            if value < 1
        ]
        if not recipe.lr > 0:
            faults.append(f"--lr {recipe.lr}: above 0")
        try:
            adapter_config(recipe)
        except ConfigError as error:
            faults.append(str(error))
        if faults:
            raise ConfigError("; ".join(faults))
        return recipe


def adapter_config(recipe: Recipe) -> AdapterConfig:
    """The part of a recipe that shapes the adapter."""
    return AdapterConfig(
        bottleneck=recipe.bottleneck,
        experts=recipe.experts,
        share=recipe.share,
        scale=recipe.scale,
        dropout=recipe.dropout,
    )


def describe(config: TuneConfig, recipe: Recipe) -> str:
    """`config.json`: everything that decides the run's result, and where its data were."""
    settings = {
        "task": config.task,
        "name": config.name,
        "method": config.method,
        "seed": config.seed,
        "split": config.split,
        "random_weights": config.random_weights,
        "backbone_weights": config.backbone_weights and str(config.backbone_weights),
        "data_dir": config.data_dir and str(config.data_dir),
        **dataclasses.asdict(recipe),
    }
    return json.dumps(settings, indent=2) + "\n"


def differences(old: str, new: str) -> list[str]:
    """The settings in which two `config.json` differ, in words."""
    before, after = json.loads(old), json.loads(new)
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} was {before.get(name)}, is {after.get(name)}" for name in names if before.get(name) != after.get(name)
    ]
