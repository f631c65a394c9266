"""How many GPU hours the runs of `benchmarks.paper` take, from what `benchmarks.gpu` measured."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper_runs import Run
from mosa_deploy.bundles.adapter_config import PROBES

MEASURED = Path(__file__).parent / "results" / "gpu" / "gpu.csv"

TUNED = ("training", "64", "MoSA, one batch of 2B")
ANSWERED = ("files", "64", "plain, fp32 file")
"""(mode, batch, variant) of the lines of `gpu.csv` that tell how fast ViT-B/16 is tuned in bf16 by two passes, and how
fast it answers in fp32, as on validation and test images."""

CARD = "NVIDIA H100"
"""The GPU on which they were measured."""

HOUR = 3600


@dataclass(frozen=True)
class Speed:
    """Images per second of ViT-B/16 at 224 px."""

    tuned: float
    answered: float

    @classmethod
    def measured(cls) -> "Speed":
        """What `benchmarks.gpu` measured."""
        with MEASURED.open(newline="") as handle:
            found = {
                (row["mode"], row["batch"], row["variant"]): row["images_per_second"] for row in csv.DictReader(handle)
            }
        return cls(float(found[TUNED]), float(found[ANSWERED]))

    def hours(self, run: Run) -> float:
        """The GPU hours of a run: two passes of each training image in each epoch, validation, and one test."""
        train, validation, test = run.task.counts
        if run.method in PROBES:
            return (train + validation + test) / self.answered / HOUR
        recipe = run.settings
        passes = recipe.passes / 2
        tuned = recipe.epochs * run.train * passes / self.tuned
        return (tuned + (recipe.epochs * validation + test) / self.answered) / HOUR


def total(runs: Iterable[Run], speed: Speed) -> float:
    """The GPU hours of these runs."""
    return sum(map(speed.hours, runs))


def estimate(runs: Sequence[Run], waiting: Sequence[Run], speed: Speed) -> list[str]:
    """What the grid costs, in words."""
    hours, left = total(runs, speed), total(waiting, speed)
    groups = dict.fromkeys(run.task.group for run in runs)
    shares = ", ".join(f"{group} {total((r for r in runs if r.task.group == group), speed):.1f}" for group in groups)
    return [
        f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished: about {hours:.1f} GPU hours in all ({shares}),"
        f" {left:.1f} of them left",
        f"estimated from {speed.tuned:,.0f} images/s tuned and {speed.answered:,.0f} answered on one {CARD}"
        " (benchmarks/results/gpu), without decoding, export and starts; another card takes longer in proportion",
    ]
