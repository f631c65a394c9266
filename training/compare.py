"""Compare methods on several tasks, with equal numbers of trials and several seeds.

    mosa compare --tasks digits,sprites-location --methods linear,adapter,mosa --seeds 2 --epochs 3

Every method tries the same number of settings on seed 0. The setting with the best validation accuracy is then tuned
with every seed, and only these runs are evaluated on the test set, once each. Running the same command again continues
where it stopped. `adapter` is the dense adapter with the same activation, number of passes and loss.
"""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from mosa_deploy.errors import ConfigError, DataError, command, unknown_name
from mosa_deploy.utils.files import write_text
from training import result_table, run
from training.arguments import compare_config
from training.config import Recipe, TuneConfig
from training.evaluate import evaluate
from training.options import CompareConfig, EvaluateConfig
from training.result_table import Result
from training.tasks import TASKS, find
from training.trials import Setting, flags, label, settings
from training.tune import tune

TEST = "test.json"


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    task: str
    method: str
    setting: Setting
    seed: int

    def folder(self, out: Path) -> Path:
        """The folder of this run below `out`."""
        return out / self.task / self.method / label(self.setting) / f"seed-{self.seed}"


def compare(config: CompareConfig) -> list[Result]:
    """Tune the runs that are missing, choose settings on validation, evaluate on the test sets, and write the tables.

    Returns one result per run; those of `--beside` come first.

    Raises:
        ConfigError: an unknown task or method, or fewer than one seed, trial or job.
    """
    tasks, methods = names(config.tasks), names(config.methods)
    check(config, tasks, methods)
    earlier = [] if config.beside is None else result_table.read_results(config.beside)
    pairs = [(task, method) for task in tasks for method in methods]
    first = [
        Cell(task, method, setting, 0)
        for task, method in pairs
        for setting in settings(method, config.trials, preset(task))
    ]
    carry_out(config, first, "trials")
    chosen = [choose(config.out, [cell for cell in first if (cell.task, cell.method) == pair]) for pair in pairs]
    # The probe has no randomness: one run stands for all seeds.
    cells = [
        Cell(best.task, best.method, best.setting, seed)
        for best in chosen
        for seed in range(1 if best.method == "linear" else config.seeds)
    ]
    carry_out(config, [cell for cell in cells if cell not in first], "seeds")
    results = [result(config, cell, test=cell in cells) for cell in dict.fromkeys([*first, *cells])]
    results = result_table.add_earlier(results, earlier)
    result_table.write_comparison(config.out, results)
    return results


def names(text: str) -> list[str]:
    """`a,b` -> a and b, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def check(config: CompareConfig, tasks: list[str], methods: list[str]) -> None:
    """Check all options and data first, so that a long comparison does not stop halfway.

    Raises:
        ConfigError: an unknown task or method, or fewer than one seed, trial or job.
        DataError: a task's images are missing or cannot be split.
    """
    for name in ("seeds", "trials", "jobs"):
        if getattr(config, name) < 1:
            raise ConfigError(f"--{name} {getattr(config, name)}: at least 1")
    if not tasks or not methods:
        raise ConfigError("--tasks and --methods need a name each")
    for method in methods:
        TuneConfig(task="", method=method).checked_method()
    for task in tasks:
        dataset, data_dir = source(config, task)
        splits = find(dataset).splits(data_dir, None)
        if not splits.train or not splits.test:
            raise DataError(f"task {task} has no {'test' if splits.train else 'training'} set: a comparison needs both")


def source(config: CompareConfig, task: str) -> tuple[str, Path | None]:
    """(name in `training.tasks`, path of the images) of a task.

    A task that is not built in is a folder or archive in --data-dir, and is tuned as `folder`.

    Raises:
        ConfigError: the task is neither built in nor in --data-dir.
        DataError: --data-dir is no folder.
    """
    found = None
    if config.data_dir is not None:
        if not config.data_dir.is_dir():
            raise DataError(f"--data-dir {config.data_dir}: no such folder; give the one that holds the tasks' images")
        archives = [path for kind in ("t*", "zip") for path in sorted(config.data_dir.glob(f"{task}.{kind}"))]
        candidates = [config.data_dir / task, *archives]
        found = next((path for path in candidates if path.exists()), None)
    if task in TASKS:
        return task, found
    if found is None:
        raise ConfigError(unknown_name("task", task, TASKS) + "; or give --data-dir that holds its folder or archive")
    return "folder", found


def carry_out(config: CompareConfig, cells: list[Cell], what: str) -> None:
    """Tune every cell that is not finished; the output of each run goes to `<run>.log`."""
    threads = max(1, torch.get_num_threads() // config.jobs)
    work = (delayed(tune_cell)(config, cell, threads) for cell in cells)
    runs = Parallel(n_jobs=config.jobs, return_as="generator_unordered")(work)
    for finished in tqdm(runs, total=len(cells), desc=what, unit=" runs", disable=None):
        tqdm.write(finished)


def tune_cell(config: CompareConfig, cell: Cell, threads: int) -> str:
    """Tune one cell unless it is finished; returns a line about it."""
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    folder = cell.folder(config.out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    dataset, data_dir = source(config, cell.task)
    tuning = TuneConfig(
        **{"epochs": config.epochs, **flags(cell.setting, preset(cell.task))},
        task=dataset,
        name=cell.task,
        method=cell.method,
        seed=cell.seed,
        precision=config.precision,
        data_dir=data_dir,
        out=folder,
        resume=(folder / run.CONFIG).exists(),
    )
    with folder.with_suffix(".log").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        tune(tuning)
    return f"{cell.task} {cell.method} {label(cell.setting)} seed {cell.seed}: validation {validation(folder)[0]:.4f}"


def preset(task: str) -> Recipe:
    """The preset of a built-in task, or of the task `folder`."""
    return find(task if task in TASKS else "folder").recipe


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
        write_text(record, json.dumps(evaluate(EvaluateConfig(bundle=folder)), indent=2) + "\n")
    return Result(
        task=cell.task,
        method=cell.method,
        setting=label(cell.setting),
        seed=cell.seed,
        parameters=int(metrics["parameters"]),
        validation=metrics["validation_accuracy"],
        test=json.loads(record.read_text())["accuracy"] if test else None,
    )


def print_comparison(config: CompareConfig) -> None:
    """Run the comparison, print its tables, and say where the files are."""
    print(result_table.tables(compare(config)))
    print(f"written to {config.out}/compare.md, compare.csv and compare.png")


@command
def main() -> None:
    """The command line."""
    print_comparison(compare_config())


if __name__ == "__main__":
    main()
