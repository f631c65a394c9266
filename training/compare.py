"""Compare methods on several tasks, with equal numbers of trials and several seeds.

    mosa compare --tasks digits,sprites-location --methods linear,adapter,mosa --seeds 2 --epochs 3

Every method tries the same number of settings on seed 0. The setting with the best validation accuracy is then tuned
with every seed, and only these runs are evaluated on the test set, once each. Running the same command again continues
where it stopped. `adapter` is the dense adapter with the same activation, number of passes and loss.
"""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from mosa_deploy.errors import command
from mosa_deploy.utils.files import write_text
from training import run
from training.arguments import compare_config
from training.compared import check, compared_tasks, is_drawn, preset
from training.config import TuneConfig
from training.evaluate import evaluate
from training.options import CompareConfig, EvaluateConfig, names
from training.result_rows import Result, add_earlier, read_results
from training.result_table import tables, write_comparison
from training.trials import Setting, centre, flags, label, settings
from training.tune import tune

TEST = "test.json"


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    base: TuneConfig
    """The options of its task."""
    method: str
    setting: Setting
    seed: int

    @property
    def group(self) -> tuple[TuneConfig, str]:
        """The trials of one group try settings of one method on the same images."""
        return self.base, self.method

    @property
    def task(self) -> str:
        """The name of its task."""
        return self.base.name or self.base.task

    def folder(self, out: Path) -> Path:
        """The folder of this run below `out`."""
        shots = () if self.base.shots is None else (f"shots-{self.base.shots}",)
        return out.joinpath(self.task, *shots, self.method, label(self.setting), f"seed-{self.seed}")

    def config(self, out: Path) -> TuneConfig:
        """The options of this run."""
        config = self.base.for_method(self.method)
        changed = flags(self.method, self.setting, centre(config, preset(config)))
        folder = self.folder(out)
        return replace(
            config,
            **changed,
            seed=self.seed,
            draw=self.seed if is_drawn(config) else 0,
            out=folder,
            resume=any((folder / name).exists() for name in (run.CONFIG, run.SEARCH)),
        )


def compare(config: CompareConfig) -> list[Result]:
    """Tune the runs that are missing, choose settings on validation, evaluate on the test sets, and write the tables.

    Returns one result per run; those of `--beside` come first.

    Raises:
        MosaError: an option, a task or a method cannot be used; found out before anything runs.
    """
    bases, methods = compared_tasks(config), names(config.methods)
    check(bases, methods)
    earlier = [] if config.beside is None else read_results(config.beside)
    first = [
        Cell(base, method, setting, 0)
        for base in bases
        for method in methods
        for setting in settings(method, config.trials, centre(base.for_method(method), preset(base)))
    ]
    carry_out(config, first, "trials")
    chosen = [choose(config.out, trials) for _, trials in groupby(first, key=lambda cell: cell.group)]
    cells = [replace(best, seed=seed) for best in chosen for seed in seeds(config, best)]
    carry_out(config, [cell for cell in cells if cell not in first], "seeds")
    results = [result(config, cell, test=cell in cells) for cell in dict.fromkeys([*first, *cells])]
    results = add_earlier(results, earlier)
    write_comparison(config.out, results)
    return results


def seeds(config: CompareConfig, cell: Cell) -> range:
    """The seeds of the chosen setting. A probe on all images has no randomness: one run stands for all seeds."""
    return range(1 if cell.method == "linear" and not is_drawn(cell.base) else config.seeds)


def carry_out(config: CompareConfig, cells: list[Cell], what: str) -> None:
    """Tune every cell that is not finished; the output of each run goes to `<run>.log`."""
    threads = max(1, torch.get_num_threads() // config.jobs)
    work = (delayed(tune_cell)(config.out, cell, threads) for cell in cells)
    runs = Parallel(n_jobs=config.jobs, return_as="generator_unordered")(work)
    for finished in tqdm(runs, total=len(cells), desc=what, unit=" runs", disable=None):
        tqdm.write(finished)


def tune_cell(out: Path, cell: Cell, threads: int) -> str:
    """Tune one cell unless it is finished; returns a line about it."""
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    folder = cell.folder(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        tune(cell.config(out))
    shots = "" if cell.base.shots is None else f", {cell.base.shots} per class"
    what = f"{cell.task}{shots} {cell.method} {label(cell.setting)} seed {cell.seed}"
    return f"{what}: validation {validation(folder)[0]:.4f}"


def validation(folder: Path) -> tuple[float, float]:
    """(accuracy, minus negative log likelihood) of a finished run on validation; larger is better."""
    metrics = json.loads((folder / run.METRICS).read_text())
    return metrics["validation_accuracy"], -metrics["validation_nll"]


def choose(out: Path, cells: Iterable[Cell]) -> Cell:
    """The cell that is best on validation."""
    return max(cells, key=lambda cell: validation(cell.folder(out)))


def result(config: CompareConfig, cell: Cell, test: bool) -> Result:
    """The result of a cell. With `test` it is evaluated on the test set, unless that was done before."""
    folder = cell.folder(config.out)
    metrics = json.loads((folder / run.METRICS).read_text())
    record = folder / TEST
    if test and not record.is_file():
        given = EvaluateConfig(bundle=folder, backbone_weights=cell.base.backbone_weights)
        write_text(record, json.dumps(evaluate(given), indent=2) + "\n")
    return Result(
        task=cell.task,
        shots=cell.base.shots,
        method=cell.method,
        setting=label(cell.setting),
        seed=cell.seed,
        parameters=int(metrics["parameters"]),
        validation=metrics["validation_accuracy"],
        test=json.loads(record.read_text())["accuracy"] if test else None,
    )


def print_comparison(config: CompareConfig) -> None:
    """Run the comparison, print its tables, and say where the files are."""
    print(tables(compare(config)))
    print(f"written to {config.out}/compare.md, with compare.csv and plots beside it")


@command
def main() -> None:
    """The command line."""
    print_comparison(compare_config())


if __name__ == "__main__":
    main()
