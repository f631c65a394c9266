"""Several tasks tuned at once against each by itself: `python -m benchmarks.joint`.

The tasks come with the package. Each is tuned by its preset alone, and all of them by `mosa tune --joint`, so that they
share an adapter. Both answer the test sets. Then the weights of their adapters are counted as a service holds them:
three slots of a bank, or one. It takes some minutes.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.record import RECORD
from mosa_deploy.errors import command
from mosa_deploy.graphs.adapter_weights import adapter_weights, digest_of
from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.intervals import mean_interval
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.config import TuneConfig
from training.evaluate import evaluate
from training.options import EvaluateConfig
from training.tune import tune
from training.tune_options import TEMPERATURE, JointOptions


@dataclass(frozen=True)
class Config:
    """Compare tasks that are tuned at once with the same tasks tuned by themselves."""

    tasks: tuple[str, ...] = ("digits", "sprites-location", "sprites-orientation")
    method: str = "mosa"
    seeds: int = 3
    temperatures: tuple[float, ...] = (1.0, TEMPERATURE, 5.0)
    """Sampling temperatures of the joint runs."""
    runs: Path | None = None
    """Keep the runs in this folder; those that are finished there are not tuned again."""
    out: Path = Path("benchmarks/results/joint")


@dataclass(frozen=True)
class Row:
    """One task of one run."""

    seed: int
    task: str
    way: str
    """`alone`, or `joint, T = 2`."""
    accuracy: float
    """On the test set, in percent."""
    validation: float
    adapter: str
    """The digest of the adapter's weights."""
    size: int
    """Their bytes."""


def row_of(run: Path, seed: int, task: str, way: str) -> Row:
    """What came of a run, on its test set."""
    bundle = Bundle.load(run)
    weights = adapter_weights(bundle)
    accuracy = 100 * evaluate(EvaluateConfig(bundle=run))["accuracy"]
    validation = 100 * bundle.record.metrics["validation_accuracy"]
    size = sum(value.nbytes for value in weights.values())
    return Row(seed, task, way, accuracy, validation, digest_of(weights), size)


def tuned(config: TuneConfig, runs: Sequence[Path]) -> None:
    """Tune unless all runs that come of it are finished."""
    if not all((run / RECORD).is_file() for run in runs):
        tune(config)


def rows_of(config: Config, seed: int, folder: Path) -> list[Row]:
    """Tune and measure one seed."""
    rows = []
    for task in config.tasks:
        run = folder / "alone" / task
        tuned(TuneConfig(task=task, method=config.method, seed=seed, out=run), [run])
        rows.append(row_of(run, seed, task, "alone"))
    file = folder / "tasks.toml"
    write_text(file, "".join(f"[tasks.{task}]\n" for task in config.tasks))
    for temperature in config.temperatures:
        joining = JointOptions(joint=file, sampling_temperature=temperature)
        out = folder / f"joint-{temperature:g}"
        tuned(
            TuneConfig(joining=joining, method=config.method, seed=seed, out=out), [out / task for task in config.tasks]
        )
        rows += [row_of(out / task, seed, task, f"joint, T = {temperature:g}") for task in config.tasks]
    return rows


def report(config: Config, rows: Sequence[Row]) -> str:
    """The results in words."""
    ways = list(dict.fromkeys(row.way for row in rows))
    lines = []
    for task in config.tasks:
        found = {way: [row.accuracy for row in rows if (row.way, row.task) == (way, task)] for way in ways}
        cells = [f"{mean_interval(found['alone']).value:.2f}"]
        for way in ways[1:]:
            pairs = zip(found[way], found["alone"], strict=True)
            mean, difference = mean_interval(found[way]), mean_interval([joint - alone for joint, alone in pairs])
            cells.append(f"{mean.value:.2f}, {difference:+z.2f}")
        lines.append((task, *cells))
    sizes = []
    for way in (ways[0], ways[1]):
        adapters = {row.adapter: row.size for row in rows if (row.way, row.seed) == (way, 0)}
        slots = "1 slot" if len(adapters) == 1 else f"{len(adapters)} slots"
        sizes.append(f"{way.partition(',')[0]} {slots}, {sum(adapters.values()) / 1e3:.0f} kB")
    return "\n\n".join(
        [
            "# Several tasks at once",
            provenance("benchmarks.joint"),
            f"{config.method} on each task's own backbone and preset, {config.seeds} seeds. Test accuracy in percent,"
            " means; of joint runs also the difference to the task alone, in points with Student's interval over the"
            " seeds. T is the sampling temperature. A joint run has the images of all tasks in each epoch, and as many"
            " epochs as the longest preset.",
            table(("task", *ways), lines, align="l" + "r" * len(ways)),
            f"The adapters of the {len(config.tasks)} tasks in a bank: {'; '.join(sizes)}.",
        ]
    )


@command
def main() -> None:
    """Measure, print and write the table."""
    config = tyro.cli(Config, prog="python -m benchmarks.joint")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if config.runs is None else config.runs
        for seed in range(config.seeds):
            rows += rows_of(config, seed, folder / str(seed))
    write_csv(config.out / "joint.csv", tuple(vars(rows[0])), [tuple(vars(row).values()) for row in rows])
    text = report(config, rows)
    write_text(config.out / "joint.md", f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
