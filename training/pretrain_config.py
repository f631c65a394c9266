"""The settings of pre-training. argparse reads them, since pre-training needs only torch, torchvision and timm."""

from __future__ import annotations

import argparse
import math
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import timm
import torch
from timm.optim import list_optimizers

from mosa_deploy.backbones import embedded
from mosa_deploy.errors import ConfigError, unknown_name
from training.pretrain_data import POLICIES

READERS: dict[Any, type] = {"Path": Path, "int": int, "int | None": int, "float": float, "str": str}
"""A field's annotation -> the function that reads its value from the command line."""


@dataclass(frozen=True)
class PretrainConfig:
    """The settings of pre-training. Every field is a flag of the same name; `low` <= value < `below` are its bounds."""

    data: Path = field(metadata={"help": "folder or tar archive of train/<class>/*.jpg and test/<class>/*.jpg"})
    out: Path = field(default=Path("runs/pretrain"), metadata={"help": "folder of the run"})
    architecture: str = field(default=embedded.ARCHITECTURE, metadata={"help": "timm ViT for images of this size"})
    depth: int | None = field(default=None, metadata={"help": "number of blocks (the architecture's own)", "low": 1})
    epochs: int = field(default=30, metadata={"help": "number of passes over the training images", "low": 1})
    full_epochs: int = field(default=3, metadata={"help": "number of final epochs that use every patch", "low": 0})
    patch_drop_rate: float = field(
        default=0.5, metadata={"help": "share of patches that earlier epochs drop, for speed", "low": 0, "below": 1}
    )
    batch_size: int = field(default=256, metadata={"help": "images per step", "low": 1})
    opt: str = field(default="adamw", metadata={"help": "optimiser of timm"})
    lr: float = field(default=1e-3, metadata={"help": "peak learning rate", "low": 1e-9})
    weight_decay: float = field(default=0.05, metadata={"help": "weight decay of the matrices", "low": 0})
    warmup_epochs: float = field(default=2.0, metadata={"help": "epochs until the peak learning rate", "low": 0})
    label_smoothing: float = field(default=0.1, metadata={"help": "label smoothing", "low": 0, "below": 1})
    drop_path_rate: float = field(default=0.0, metadata={"help": "rate of stochastic depth", "low": 0, "below": 1})
    augment: str = field(default="none", metadata={"help": "besides crop and flip", "choices": tuple(POLICIES)})
    mixup: float = field(default=0.0, metadata={"help": "MixUp with share Beta(a, a); 0 for none", "low": 0})
    cutmix: float = field(default=0.0, metadata={"help": "CutMix with share Beta(a, a); 0 for none", "low": 0})
    ema_decay: float = field(default=0.998, metadata={"help": "decay of the averaged weights", "low": 0, "below": 1})
    held_out: int = field(default=2000, metadata={"help": "training images held out to monitor accuracy", "low": 1})
    seed: int = field(default=0, metadata={"help": "seed of all randomness"})
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu",
        metadata={"help": "where to train", "choices": ("cpu", "cuda")},
    )

    def check(self) -> None:
        """Check every setting.

        Raises:
            ConfigError: a setting is invalid; lists every fault at once.
        """
        faults = [fault for setting in fields(self) for fault in _out_of_bounds(setting, getattr(self, setting.name))]
        if self.full_epochs > self.epochs:
            faults.append(f"--full-epochs {self.full_epochs} is more than --epochs {self.epochs}: lower it")
        if self.warmup_epochs >= self.epochs:
            faults.append(f"--warmup-epochs {self.warmup_epochs:g} leaves nothing of --epochs {self.epochs}: lower it")
        if not timm.is_model(self.architecture):
            faults.append(unknown_name("architecture", self.architecture, timm.list_models("vit*")))
        optimisers = [str(name) for name in list_optimizers()]
        if self.opt not in optimisers:
            faults.append(unknown_name("optimiser", self.opt, optimisers))
        if self.device == "cuda" and not torch.cuda.is_available():
            faults.append("--device cuda: torch finds no CUDA device here; leave it out to use the CPU")
        if self.out.exists() and not self.out.is_dir():
            faults.append(f"--out {self.out} is a file: choose a folder")
        if faults:
            raise ConfigError("; ".join(faults))

    def recipe(self) -> dict[str, object]:
        """The settings that decide the result, besides the images."""
        return {name: value for name, value in vars(self).items() if name not in ("data", "out", "device")}


def _out_of_bounds(setting: Field[Any], value: Any) -> list[str]:
    """One text if a value is outside its field's bounds, else none. NaN and infinity are always outside."""
    low, below = setting.metadata.get("low"), setting.metadata.get("below", math.inf)
    if value is None or low is None or low <= value < below:
        return []
    return [f"{_flag(setting)} {value:g}: at least {low:g}" + (f" and below {below:g}" if below < math.inf else "")]


def _flag(setting: Field[Any]) -> str:
    return "--" + setting.name.replace("_", "-")


def parse(arguments: list[str], description: str | None = None) -> PretrainConfig:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.pretrain",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for setting in fields(PretrainConfig):
        required = setting.default is MISSING
        default = "" if required or setting.default is None else f" ({setting.default})"
        parser.add_argument(
            _flag(setting),
            type=READERS[setting.type],
            required=required,
            default=None if required else setting.default,
            choices=setting.metadata.get("choices"),
            help=setting.metadata["help"] + default,
        )
    return PretrainConfig(**vars(parser.parse_args(arguments)))
