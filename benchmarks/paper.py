"""The tables of the MoSA paper (arXiv 2312.02923): `python -m benchmarks.paper --tables fgvc,vtab,gicd --seeds 3`.

Every task is tuned on ViT-B/16 (ImageNet-21k) by the paper's recipe for it and by ours, as a fleet (`mosa fleet`) on
one GPU, several, or a Ray cluster. First comes what is missing and an estimate of GPU hours; `--dry-run` ends there.
The same command goes on where it stopped: finished runs are lines of `runs.csv`, which may be carried to another
machine, and a run that was killed loses at most the epoch that it was in. Tasks whose images are missing are left out,
and say `not measured`.

The paper's recipe for VTAB tunes on all 1,000 images, as published tables do. Ours tunes on 800 and chooses the epoch
by the other 200. Images are decoded, and test sets answered once, as by `mosa tune` and `mosa evaluate`.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.paper_estimate import Speed, estimate
from benchmarks.paper_runs import BACKBONE, Row, Run, collect, planned, read_rows, task_file
from benchmarks.paper_tables import tables
from mosa_deploy.backbones.load import check_name, check_reachable
from mosa_deploy.errors import ConfigError, DataError, MosaError, command, unknown_name
from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.versions import machine, provenance
from training.config import TuneConfig
from training.options import names
from training.recipes import SETTINGS
from training.tasks import BENCHMARKS
from training.tasks.benchmark import Benchmark, data_root
from training.tasks.catalogue import how_to_get

GROUPS = ("fgvc", "vtab", "gicd")
RUNS, REPORT = "runs.csv", "paper.md"


@dataclass(frozen=True)
class Config:
    """Fill the tables of the paper, as far as images and a GPU are here."""

    tables: str = "fgvc,vtab,gicd"
    """Comma-separated tables: fgvc, vtab and gicd."""
    tasks: str = ""
    """Comma-separated tasks of these tables, such as vtab/eurosat. Default: all of them."""
    seeds: int = 3
    """Runs of each task, one per seed."""
    recipe: str = "paper,ours"
    """Comma-separated recipes: paper, ours and reference."""
    methods: str = "mosa"
    """Comma-separated methods of `mosa tune`, such as linear,adapter,mosa."""
    data_dir: Path | None = None
    """Folder that holds the data sets, see `python -m training.tasks`. Default: `data` in the cache folder."""
    backbone: str = BACKBONE
    """timm's name of the backbone."""
    backbone_weights: Path | None = None
    """File of its weights, such as ViT-B_16.npz. Default: from timm's hub."""
    image_size: int | None = None
    """Height and width of the input in pixels. Default: the backbone's own, 224."""
    epochs: int | None = None
    """Number of epochs of every run, for a trial. The figures are then not those of the recipes."""
    gpus: str = "0"
    """Comma-separated numbers of the GPUs, each with a fleet of its own."""
    jobs: int = 1
    """Runs at a time on each GPU."""
    ray: str | None = None
    """Address of a Ray cluster, as in `mosa fleet`, that carries out all runs: each has a GPU, or --jobs of them share
    one. --gpus is then not read."""
    device: str = "cuda"
    """Where to tune: cuda, or cpu for a trial."""
    dry_run: bool = False
    """Say what would run, what is missing and how long it takes, and write the tables of what is finished."""
    out: Path = Path("benchmarks/results/paper")
    """Folder of runs.csv and paper.md."""
    work: Path = Path("runs/paper")
    """Folder of the fleets."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = [unknown_name("table", name, GROUPS) for name in names(self.tables) if name not in GROUPS]
        faults += [unknown_name("recipe", name, SETTINGS) for name in names(self.recipe) if name not in SETTINGS]
        known = [task.name for task in BENCHMARKS]
        faults += [unknown_name("task", name, known) for name in names(self.tasks) if name not in known]
        faults += [
            f"--{name} {getattr(self, name)}: at least 1" for name in ("seeds", "jobs") if getattr(self, name) < 1
        ]
        faults += [
            f"--{name} needs a name"
            for name in ("tables", "recipe", "methods", "gpus")
            if not names(getattr(self, name))
        ]
        if self.device not in ("cpu", "cuda"):
            faults.append(unknown_name("device", self.device, ("cpu", "cuda")))
        if faults:
            raise ConfigError("; ".join(faults))
        for method in names(self.methods):
            TuneConfig(task="", method=method).checked_method()

    @property
    def chosen(self) -> list[Benchmark]:
        """The tasks."""
        groups, own = names(self.tables), names(self.tasks)
        return [task for task in BENCHMARKS if task.group in groups and (not own or task.name in own)]

    @property
    def root(self) -> Path:
        """The folder of the data sets."""
        return data_root() if self.data_dir is None else self.data_dir

    @property
    def common(self) -> dict[str, Any]:
        """The options that all runs share."""
        weights = None if self.backbone_weights is None else str(self.backbone_weights.resolve())
        found = {"backbone": self.backbone, "backbone_weights": weights, "image_size": self.image_size}
        found |= {"epochs": self.epochs, "device": self.device}
        return {name: value for name, value in found.items() if value is not None}


def missing(config: Config, tasks: Sequence[Benchmark]) -> list[str]:
    """What keeps runs from being carried out, beside images: one text each."""
    found = []
    own = config.device == "cuda" and config.ray is None
    if own and not torch.cuda.is_available():
        found.append("no GPU: torch finds none on this machine (--device cpu tunes on the CPU, for a trial)")
    if own and torch.cuda.is_available():
        known = {str(i) for i in range(torch.cuda.device_count())}
        found += [
            f"no GPU {gpu}: there are {', '.join(sorted(known))}" for gpu in names(config.gpus) if gpu not in known
        ]
    if not tasks:
        found.append(f"no data set is in {config.root}")
    try:
        check_name(config.backbone)
        if config.backbone_weights is None:
            check_reachable(config.backbone)
        elif not config.backbone_weights.is_file():
            found.append(f"no backbone: --backbone-weights {config.backbone_weights}: no such file")
    except MosaError as error:
        found.append(f"no backbone: {error}")
    return found


def shares(runs: Sequence[Run], gpus: Sequence[str], speed: Speed) -> dict[str, list[Run]]:
    """GPU -> its runs, so that all have about as much to do. They are the same whichever runs are finished."""
    found: dict[str, list[Run]] = {gpu: [] for gpu in gpus}
    load = dict.fromkeys(gpus, 0.0)
    for run in sorted(runs, key=lambda run: (-speed.hours(run), run.name)):
        least = min(gpus, key=load.__getitem__)
        found[least].append(run)
        load[least] += speed.hours(run)
    return found


def fleet(config: Config, place: str) -> tuple[list[str], dict[str, str]]:
    """The command line of a fleet on a GPU, or on a cluster, and the variables of its own."""
    out = config.work / f"fleet-{place}"
    line = [sys.executable, "-m", "training.fleet", str(out / "tasks.toml"), "--out", str(out)]
    if config.ray is not None:
        share = ["--gpus", f"{1 / config.jobs:g}"] if config.device == "cuda" else []
        return [*line, "--ray", config.ray, *share], {}
    return [*line, "--jobs", str(config.jobs)], {"CUDA_VISIBLE_DEVICES": place} if config.device == "cuda" else {}


def carry_out(config: Config, runs: Mapping[str, Sequence[Run]]) -> bool:
    """Carry out the runs of each place as a fleet; returns whether all succeeded."""
    fleets = []
    for place, given in runs.items():
        line, own = fleet(config, place)
        write_text(config.work / f"fleet-{place}" / "tasks.toml", task_file(given, config.root, config.common))
        fleets.append(subprocess.Popen(line, env=os.environ | own))
    try:
        codes = [process.wait() for process in fleets]
        return not any(codes)
    finally:
        for process in fleets:
            process.terminate()


def tell(config: Config, costs: Sequence[str], absent: Sequence[Benchmark], faults: Sequence[str]) -> None:
    """Say what the grid costs, and what is missing and how to get it."""
    print(*costs, sep="\n")
    if absent:
        print(f"missing: images of {len(absent)} of {len(config.chosen)} tasks, which are left out")
        print(*how_to_get(absent), sep="\n")
    for fault in faults:
        print(f"missing: {fault}")
    print(flush=True)


def report(config: Config, rows: Sequence[Row]) -> str:
    """The tables, as Markdown."""
    pairs = [(recipe, method) for method in names(config.methods) for recipe in names(config.recipe)]
    return tables(names(config.tables), pairs, rows, config.seeds)


def write_results(config: Config, rows: Sequence[Row], costs: Sequence[str], hardware: str) -> None:
    """Write `runs.csv` and `paper.md`."""
    if rows:
        columns = [field.name for field in dataclasses.fields(Row)]
        write_csv(config.out / RUNS, columns, map(dataclasses.astuple, rows))
    parts = ["# The paper's tables", provenance("benchmarks.paper", hardware), f"{'; '.join(costs)}."]
    write_text(config.out / REPORT, "\n\n".join([*parts, report(config, rows)]) + "\n")
    print(f"written to {config.out / REPORT}")


def grid(config: Config) -> bool:
    """Say what there is to do, do it, and write the tables; returns whether all that could run succeeded.

    Raises:
        ConfigError: nothing can run.
        DataError: `runs.csv` is damaged, or --data-dir is no folder.
    """
    if config.data_dir is not None and not config.data_dir.is_dir():
        raise DataError(f"--data-dir {config.data_dir}: no such folder; give the one that holds the data sets")
    hardware = torch.cuda.get_device_name() if config.device == "cuda" and torch.cuda.is_available() else machine()
    hardware = hardware if config.ray is None else "a Ray cluster"
    runs, speed = planned(config.chosen, names(config.recipe), names(config.methods), config.seeds), Speed.measured()
    present = [task for task in config.chosen if task.is_present(config.root)]

    def left(rows: Sequence[Row]) -> list[Run]:
        done = {row.key for row in rows}
        return [run for run in runs if run.key not in done]

    rows = collect(runs, config.work, read_rows(config.out / RUNS), hardware)
    faults = missing(config, present) if left(rows) else []
    absent = [task for task in config.chosen if task not in present]
    tell(config, estimate(runs, left(rows), speed), absent, faults)
    if config.dry_run:
        print(report(config, rows))
        return True
    fine = True
    if not faults:
        waiting = [run for run in left(rows) if run.task in present]
        own = shares(runs, names(config.gpus), speed) if config.ray is None else {"ray": runs}
        todo = {gpu: [run for run in given if run in waiting] for gpu, given in own.items()}
        fine = carry_out(config, {gpu: given for gpu, given in todo.items() if given})
        rows = collect(runs, config.work, rows, hardware)
    print(report(config, rows))
    write_results(config, rows, estimate(runs, left(rows), speed), hardware)
    if faults:
        raise ConfigError(f"nothing was run: {'; '.join(faults)}")
    return fine


@command
def main() -> None:
    """The command line."""
    if not grid(tyro.cli(Config, prog="python -m benchmarks.paper")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
