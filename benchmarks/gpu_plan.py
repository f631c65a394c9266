"""The command line of `benchmarks.gpu`, and what it measures in which order."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_files import FILES as EXPORTED
from benchmarks.gpu_files import IN_FLIGHT, LEG, LOADS
from benchmarks.gpu_models import INFERENCE, MIXED, PEFT, STEPS
from benchmarks.gpu_timing import COMPILE, EAGER, FILES, GRAPHS, SERVICE, TRAINING
from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.versions import git_commit

SHARES = {EAGER: 1, GRAPHS: 1, TRAINING: 1, FILES: 2, SERVICE: 2, COMPILE: 4}
"""Mode -> its share of the time, in the order in which they run; the slowest to prepare comes last."""


@dataclass(frozen=True)
class Config:
    """The command line."""

    backbone: str
    depth: int | None
    bottleneck: int
    batch_sizes: tuple[int, ...]
    training_batch: int
    training_bottleneck: int
    modes: tuple[str, ...]
    compile_backend: str
    minutes: float
    seconds: float | None
    device: str
    commit: str
    out: Path


@dataclass(frozen=True)
class Cell:
    """The variants of one mode and batch size, which run in turn. The first one is the reference."""

    mode: str
    batch: int
    variants: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many images one call answers."""
        return self.batch * (LEG if self.mode == SERVICE else 1)


def parse(arguments: Sequence[str]) -> Config:
    """Read the command line.

    Raises:
        ConfigError: a GPU is asked for but not available, or a number is below 1.
    """
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description="What adapters cost on a GPU.")
    parser.add_argument("--backbone", default="vit_base_patch16_224", help="a plain timm ViT; its weights are random")
    parser.add_argument("--depth", type=int, help="number of blocks, instead of the backbone's own")
    parser.add_argument("--bottleneck", type=int, default=64, help="r of the adapters in inference")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--training-batch", type=int, default=64)
    parser.add_argument("--training-bottleneck", type=int, default=16)
    parser.add_argument("--modes", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--compile-backend", default="inductor", help="torch.compile's")
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything, including building the models")
    parser.add_argument(
        "--seconds", type=float, help="for the rounds of each mode and batch, instead of what --minutes allows"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--commit", default=git_commit() or "unknown", help="to record if this is not a git checkout")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="where gpu.csv and gpu.md go")
    given = vars(parser.parse_args(arguments))
    for name in ("batch_sizes", "training_batch", "bottleneck", "training_bottleneck", "depth"):
        if given[name] is not None and np.min(given[name]) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {np.min(given[name])}: at least 1")
    if given["device"] == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no NVIDIA GPU; install its driver, or try --device cpu")
    if given["device"] == "auto":
        given["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    return Config(**given | {name: tuple(given[name]) for name in ("batch_sizes", "modes")})


def plan(config: Config) -> list[Cell]:
    """The cells to measure, in the order in which they run."""
    return [cell for mode in SHARES if mode in config.modes for cell in cells_of(mode, config)]


def cells_of(mode: str, config: Config) -> list[Cell]:
    """The cells of one mode."""
    if mode == TRAINING:
        return [Cell(mode, config.training_batch, STEPS)]
    if mode == SERVICE:
        return [Cell(mode, in_flight, LOADS) for in_flight in IN_FLIGHT]
    known: tuple[str, ...] = EXPORTED if mode == FILES else INFERENCE
    # PEFT sorts the samples by adapter, in Python, at every call: neither captured nor compiled whole.
    known = tuple(name for name in known if name != PEFT or mode == EAGER)
    return [
        Cell(mode, batch, tuple(name for name in known if batch > 1 or name != MIXED)) for batch in config.batch_sizes
    ]
