"""Linear probe against merged MoSA on the embedded tasks: `python -m benchmarks.embedded`.

Every run selects on validation; each test set is read once a run. Writes the table that the README quotes.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from mosa_deploy.files import write_text
from mosa_deploy.versions import git_commit, library_versions, machine
from training.config import TuneConfig
from training.evaluate import EvaluateConfig, evaluate
from training.tune import tune

METHODS = ("linear", "mosa")


@dataclass(frozen=True)
class Config:
    """Tune every task by every method with every seed."""

    tasks: tuple[str, ...] = ("digits", "sprites-location")
    seeds: tuple[int, ...] = (0, 1, 2)
    work: Path = Path("build/embedded")
    """Where the runs go; finished ones are kept."""
    out: Path = Path("benchmarks/results")


def run(config: Config, task: str, method: str, seed: int) -> float:
    """Test accuracy of one run, which is tuned first if it is not there."""
    out = config.work / f"{task}-{method}-{seed}"
    tune(TuneConfig(task=task, method=method, seed=seed, out=out, resume=(out / "config.json").exists()))
    return evaluate(EvaluateConfig(bundle=out))["accuracy"]


def main() -> None:
    """Write `embedded.csv` and `embedded.md`."""
    config = tyro.cli(Config, prog="python -m benchmarks.embedded")
    accuracy = {
        (task, method, seed): run(config, task, method, seed)
        for task in config.tasks
        for method in METHODS
        for seed in config.seeds
    }
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("task", "method", "seed", "test_accuracy"))
    writer.writerows((*key, round(value, 4)) for key, value in accuracy.items())
    write_text(config.out / "embedded.csv", buffer.getvalue())
    lines = ["| task | method | seeds | test accuracy, mean | standard deviation |", "|---|---|---|---|---|"]
    for task in config.tasks:
        for method in METHODS:
            values = [accuracy[task, method, seed] for seed in config.seeds]
            spread = f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else "one seed"
            lines.append(f"| {task} | {method} | {len(values)} | {np.mean(values):.4f} | {spread} |")
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    head = f"`python -m benchmarks.embedded`; {machine()}; commit {git_commit()}; {versions}"
    note = "The linear probe has no randomness: its seeds agree."
    write_text(config.out / "embedded.md", f"# Linear probe and MoSA\n\n{head}\n\n{chr(10).join(lines)}\n\n{note}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
