"""Compare methods on several tasks, with equal numbers of trials and several seeds.

    mosa compare --tasks digits,sprites-location --methods linear,adapter,mosa --seeds 2 --epochs 3

Every method tries the same number of settings on seed 0. The setting with the best validation accuracy is then tuned
with every seed, and only these runs are evaluated on the test set, once each. Running the same command again continues
where it stopped. `adapter` is the dense adapter with the same activation, number of passes and loss.
"""

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from tqdm import tqdm

from mosa_deploy.errors import TrainingError, command
from mosa_deploy.utils.command_line import arguments_of
from mosa_deploy.utils.files import write_text
from training import run
from training.arguments import compare_config
from training.compared import check, compared_tasks, is_drawn, preset
from training.config import TuneConfig
from training.evaluate import evaluate
from training.fleet.crew import Work
from training.fleet.place import Place
from training.fleet.process import End
from training.options import CompareConfig, EvaluateConfig, names
from training.result_rows import Result, add_earlier, read_results
from training.result_table import tables, write_comparison
from training.trials import Setting, centre, flags, label, settings

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

    @property
    def name(self) -> str:
        """The run in words."""
        shots = "" if self.base.shots is None else f", {self.base.shots} per class"
        return f"{self.task}{shots} {self.method} {label(self.setting)} seed {self.seed}"

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
    if config.ray is not None:
        config, bases = config.on_every_machine(), [base.on_every_machine() for base in bases]
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
    """Tune every cell that is not finished; the output of each run goes to `<run>.log`.

    Raises:
        TrainingError: runs failed; names all of them, after the others have ended.
    """
    if not cells:
        return
    by_name, lock = {cell.name: cell for cell in cells}, threading.Lock()
    # A cluster takes as many at a time as it has cores for.
    jobs = config.jobs or (len(cells) if config.ray else 1)
    with (
        place(config, cells).crew(jobs, max(1, torch.get_num_threads() // jobs)) as crew,
        tqdm(total=len(cells), desc=what, unit=" runs", disable=None) as bar,
    ):

        def told(work: Work, end: End) -> None:
            with lock:
                bar.update(not end.fault)
                said = end.fault or f"validation {validation(by_name[work.name].folder(config.out))[0]:.4f}"
                bar.write(f"{work.name}: {said}")

        works = [work_of(cell, config.out) for cell in cells]
        faults = crew.carry_out(works, told)
    if faults:
        logs = {work.name: work.log for work in works}
        raise TrainingError("; ".join(f"{name}: {fault.text}; see {logs[name]}" for name, fault in faults.items()))


def place(config: CompareConfig, cells: Sequence[Cell]) -> Place:
    """Where the cells are tuned."""
    return Place(config.ray, config.gpus, [config.out], [path for cell in cells for path in cell.base.inputs])


def work_of(cell: Cell, out: Path) -> Work:
    """The command line that tunes a cell, or finds that it is finished."""
    return Work(cell.name, lambda: [["tune", *arguments_of(cell.config(out))]], cell.folder(out).with_suffix(".log"))


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
