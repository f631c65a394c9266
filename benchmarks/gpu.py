"""Measure what adapters cost on a GPU, in under 9 minutes: `python -m benchmarks.gpu`.

It needs only torch and timm; if PEFT is installed, its mixed batch is timed too. All variants of a mode and batch size
run in turn, in one process and in a new random order each round. Ratios are computed per round; the table has their
median with a 95 % bootstrap interval. As a control, a copy of the plain model is compared with the plain model. If a
variant fails, its row gives the reason; if the time runs out, it says `not measured`. The files are written again after
every mode and batch size.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_models import INFERENCE, MIXED, PEFT, STEPS, Variant, inference_variants, training_steps
from benchmarks.gpu_report import NOT_MEASURED, Row, heading, tables, write
from benchmarks.gpu_timing import (
    COMPILE,
    EAGER,
    GRAPHS,
    TRAINING,
    Call,
    DeadlineError,
    check,
    headline,
    interleave,
    peak_mib,
    prepare,
    to_device,
)
from mosa_deploy.backbones.foldable import image_size
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.errors import ConfigError, command
from mosa_deploy.utils.intervals import median_interval
from mosa_deploy.utils.versions import git_commit

SHARES = {EAGER: 1, GRAPHS: 1, TRAINING: 1, COMPILE: 4}
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
    cells = []
    for mode in (mode for mode in SHARES if mode in config.modes):
        if mode == TRAINING:
            cells.append(Cell(mode, config.training_batch, STEPS))
            continue
        # PEFT sorts the samples by adapter, in Python, at every call: neither captured nor compiled whole.
        left_out = {PEFT} if mode != EAGER else set()
        for batch in config.batch_sizes:
            names = tuple(name for name in INFERENCE if name not in left_out and (batch > 1 or name != MIXED))
            cells.append(Cell(mode, batch, names))
    return cells


class Bench:
    """The models of one benchmark, and the deadline for measuring them."""

    def __init__(self, config: Config, deadline: float) -> None:
        """`deadline` is in seconds of `time.perf_counter`."""
        self.config, self.deadline = config, deadline
        depth: dict[str, Any] = {} if config.depth is None else {"depth": config.depth}
        self.backbone = load_backbone(config.backbone, Weights("random"), **depth)
        self.variants: dict[str, Variant] = {}
        self.flops: dict[str, float] = {}
        self.faults: dict[str, str] = {}
        self.slowest: dict[str, float] = {}

    def build(self) -> None:
        """Make every variant in bf16 on the device. If one cannot be made, its error is recorded."""
        for name, make in inference_variants(self.backbone, self.config.bottleneck).items():
            try:
                self.variants[name] = make()
            except Exception as error:
                self.faults[name] = headline(error)
        for name, variant in self.variants.items():
            variant.model.to(self.config.device, torch.bfloat16)
            try:
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    self.eager(variant, 1)()
                self.flops[name] = float(counter.get_total_flops())
            except Exception as error:
                self.faults[name] = headline(error)

    def eager(self, variant: Variant, batch: int) -> partial[Tensor]:
        """The model, with images and arguments that lie on the device."""
        generator = torch.Generator().manual_seed(batch)
        size = image_size(self.backbone)
        images = torch.randn(batch, 3, *size, generator=generator).to(self.config.device, torch.bfloat16)
        arguments = {name: to_device(value, self.config.device) for name, value in variant.arguments(batch).items()}
        return partial(variant.model, images, **arguments)

    def measure(self, cell: Cell, rows: dict[str, Row], until: float) -> None:
        """Fill in the rows of a cell, timed until `until`.

        Raises:
            DeadlineError: the deadline comes before there are enough rounds.
        """
        training, reference = cell.mode == TRAINING, cell.variants[0]
        with torch.inference_mode(not training):
            calls = self.training_calls(cell) if training else self.inference_calls(cell, rows)
            if reference not in calls:
                return
            if self.config.seconds is not None:
                until = time.perf_counter() + self.config.seconds
            times = interleave(calls, until, self.deadline, self.synchronise)
        for name, values in times.items():
            row = rows[name]
            row.note = row.note.removeprefix(NOT_MEASURED)
            row.rounds, row.ms = len(values), 1000 * float(np.median(values))
            row.images_per_second = 1000 * cell.batch / row.ms
            row.ratio, row.ratio_low, row.ratio_high = median_interval(values / times[reference])
            if not training:
                row.flop_ratio = self.flops[name] / self.flops[reference]
        if training and self.config.device == "cuda":
            memory = {name: peak_mib(call) for name, call in calls.items()}
            for name, held in memory.items():
                rows[name].memory_mib, rows[name].memory_ratio = held, held / memory[reference]

    def training_calls(self, cell: Cell) -> dict[str, Call]:
        """The training steps, each on its own backbone."""
        config = self.config
        return dict(training_steps(self.backbone, config.training_bottleneck, cell.batch, config.device))

    def inference_calls(self, cell: Cell, rows: dict[str, Row]) -> dict[str, Call]:
        """The calls of all variants, prepared and checked. If one fails or comes too late, its row says so."""
        if not self.variants:
            self.build()
        torch.compiler.reset()
        calls: dict[str, Call] = {}
        for name in cell.variants:
            # Skip it if it would finish too late when as slow as the slowest one so far.
            if time.perf_counter() + self.slowest.get(cell.mode, 0) > self.deadline:
                break
            if name in self.faults:
                rows[name].note = self.faults[name]
                continue
            start = time.perf_counter()
            try:
                eager = self.eager(self.variants[name], cell.batch)
                answer = eager()
                self.synchronise()
                start = time.perf_counter()
                call, remark = prepare(cell.mode, eager, self.config.compile_backend)
                check(call(), answer)
                self.synchronise()
            except Exception as error:
                rows[name].note = headline(error)
            else:
                calls[name] = call
                rows[name].ready_s = time.perf_counter() - start
                rows[name].note += remark
            self.slowest[cell.mode] = max(self.slowest.get(cell.mode, 0), time.perf_counter() - start)
        return calls

    def synchronise(self) -> None:
        """Wait until the device has finished."""
        if self.config.device == "cuda":
            torch.cuda.synchronize()


def carry_out(config: Config) -> list[Row]:
    """Measure the cells one after the other, each in its share of the remaining time; write the files after each."""
    deadline = time.perf_counter() + 60 * config.minutes
    cells = plan(config)
    rows = [{name: Row(cell.mode, cell.batch, name) for name in cell.variants} for cell in cells]
    head = heading(config.device, config.commit)
    what = f"{config.backbone}, r = {config.bottleneck}; training: r = {config.training_bottleneck}"

    def keep() -> list[Row]:
        found = [row for part in rows for row in part.values()]
        write(config.out, f"Adapters on {config.device}: {what}", head, found)
        return found

    keep()
    bench = Bench(config, deadline)
    for i, cell in enumerate(cells):
        now = time.perf_counter()
        share = SHARES[cell.mode] / sum(SHARES[later.mode] for later in cells[i:])
        print(f"{cell.mode}, batch {cell.batch}", flush=True)
        try:
            bench.measure(cell, rows[i], now + share * (deadline - now))
        except DeadlineError:
            print(f"{cell.mode}, batch {cell.batch}: {NOT_MEASURED}, the time is up", flush=True)
        except Exception as error:
            for row in rows[i].values():
                row.note = headline(error)
        keep()
    return keep()


@command
def main() -> None:
    """Measure, print and write the tables."""
    config = parse(sys.argv[1:])
    print(tables(carry_out(config)))
    print(f"written to {config.out}")


if __name__ == "__main__":
    main()
