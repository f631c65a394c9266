"""Compare training steps in bf16 and in fp32 on a CPU: `python -m benchmarks.cpu_precision`.

Both trainers make a step of the same batch in turn, in one process and in a new random order each round, at each size
of the images. The speeds are compared round by round, with 95 % bootstrap intervals. What bf16 does to the accuracy
says `python -m benchmarks.evidence precision`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.step import make_trainers, measure, ratio_text
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import machine, provenance
from training.loop import Trainer
from training.precision import bf16_units
from training.tasks.base import REAL

TARGET = 1.4
"""The smallest aim for the speed of bf16 where a CPU multiplies in it."""


@dataclass(frozen=True)
class Config:
    """Measure steps in bf16 and fp32."""

    image_sizes: tuple[int, ...] = (98, 224)
    batch_size: int = 16
    rounds: int = 20
    out: Path = Path("benchmarks/results/cpu_precision.md")


def row(size: int, batch_size: int, rounds: int) -> tuple[str, ...]:
    """A row of the table: images of `size` pixels a side."""
    recipe = replace(REAL, batch_size=batch_size)
    found: dict[str, Trainer] = {}
    for precision in ("fp32", "bf16"):
        found |= make_trainers({precision: (Trainer, recipe)}, size, "cpu", precision)
    times = measure(found, rounds, "cpu")
    milliseconds = {name: 1000 * float(np.median(values)) for name, values in times.items()}
    rates = [f"{1000 * batch_size / each:.1f}" for each in milliseconds.values()]
    return (
        str(size),
        *(f"{each:.0f}" for each in milliseconds.values()),
        *rates,
        ratio_text(times["fp32"] / times["bf16"]),
    )


def main() -> None:
    """Measure, print and write the table."""
    config = tyro.cli(Config, prog="python -m benchmarks.cpu_precision")
    rows = [row(size, config.batch_size, config.rounds) for size in config.image_sizes]
    columns = ("px", "fp32, ms", "bf16, ms", "fp32, images/s", "bf16, images/s", "bf16 / fp32, images/s (95 %)")
    units = " and ".join(bf16_units()) or "nothing that multiplies in bf16"
    head = provenance("benchmarks.cpu_precision", f"{machine()}, {torch.get_num_threads()} threads, {units}")
    setting = (
        f"MoSA, balanced, in all blocks of {REAL.backbone}, r = {REAL.bottleneck}, E = {REAL.experts}, two passes,"
        f" batch {config.batch_size}, {config.rounds} rounds; aim: {TARGET}"
    )
    text = table(columns, rows)
    write_text(config.out, f"# Steps in bf16 and fp32 on a CPU\n\n{head}\n\n{setting}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
