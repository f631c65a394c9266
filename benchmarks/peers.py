"""Compare the service with what users would run instead: `python -m benchmarks.peers`, or `--quick` to try it.

Every server answers the same tasks on the same backbone, asked for the same images over HTTP, one server after the
other, each in processes of its own. Every answer is compared with the known one. The order is turned round in every
second round, so that a machine that slows down favours nobody.

When a server is measured, its row is written into `<model>.json` in `--out`, and `peers.md` is made from all these
files: models can be measured at different times, and an interrupted run keeps its rows. What is not installed is a row
that says so.
"""

import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import tyro

from benchmarks.peers_measure import Measured, Setting, measure
from benchmarks.peers_processes import PEERS
from benchmarks.peers_report import report
from benchmarks.peers_tasks import MODELS, Exported, Model, make
from mosa_deploy.errors import ConfigError, command, unknown_name
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.versions import command_line, git_commit, installed_versions, library_versions, machine

Precision = Literal["fp32", "best"]

LIBRARIES = ("peft", "litserve", "ray", "fastapi", "uvicorn", "uvloop", "httptools")
"""Those whose versions matter here besides the usual ones."""


@dataclass(frozen=True)
class Config:
    """Measure this project's service and its peers on the same tasks."""

    weights: Path | None = None
    """The file of DINOv2 ViT-S/14's weights; without it, the models that need it are left out."""
    models: str = "dinov2-98,dinov2-224,vit-b16"
    """Comma-separated models, of dinov2-98, dinov2-224, vit-b16 and embedded."""
    only: str = ""
    """Comma-separated servers to measure. Default: all."""
    tasks: tuple[int, ...] = (1, 8, 64)
    """Numbers of tasks; requests go through all of them in turn."""
    in_flight: tuple[int, ...] = (1, 16, 64)
    precisions: tuple[Precision, ...] = ("fp32", "best")
    """`best` is what each server is fastest in; the report says what that is."""
    seconds: float = 8
    """Length of a load in seconds."""
    rounds: int = 2
    """How often each server is started and measured."""
    memory_gb: float | None = None
    """Memory that the models of one server may take; a server that would need more is not started. Default: three
    quarters of what is free."""
    work: Path | None = None
    """Folder for the exported tasks, which a later run finds there. Default: a temporary one."""
    quick: bool = False
    """Use the embedded backbone, two tasks and short loads, to check that everything works. The times mean little."""
    out: Path = Path("benchmarks/results/peers")

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = [unknown_name("--models", name, MODELS) for name in self.model_names if name not in MODELS]
        faults += [unknown_name("--only", name, PEERS) for name in self.peer_names if name not in PEERS]
        counts = {"tasks": self.tasks, "in-flight": self.in_flight, "rounds": (self.rounds,)}
        faults += [f"--{flag} {value}: at least 1" for flag, values in counts.items() for value in values if value < 1]
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def model_names(self) -> list[str]:
        """The models that are asked for."""
        return ["embedded"] if self.quick else self.models.split(",")

    @property
    def peer_names(self) -> list[str]:
        """The servers that are asked for."""
        return [name for name in self.only.split(",") if name] or list(PEERS)

    @property
    def task_counts(self) -> tuple[int, ...]:
        """The numbers of tasks."""
        return (2,) if self.quick else self.tasks

    @property
    def setting(self) -> Setting:
        """What is asked of every server alike."""
        allowed = 0.75 * psutil.virtual_memory().available if self.memory_gb is None else 1e9 * self.memory_gb
        return Setting((1, 8), 1, allowed) if self.quick else Setting(self.in_flight, self.seconds, allowed)


def measured(config: Config, model: Model, folder: Path) -> Iterator[Measured]:
    """The rows of one model, as they come."""
    with contextlib.redirect_stdout(None) if config.quick else contextlib.nullcontext():
        exported = exported_tasks(config, model, folder)
    for rotation in range(1 if config.quick else config.rounds):
        order = config.peer_names[:: -1 if rotation % 2 else 1]
        for tasks in config.task_counts:
            for precision in config.precisions:
                for name in order:
                    with tempfile.TemporaryDirectory(dir=folder) as place:
                        yield measure(name, PEERS[name], precision, tasks, exported, Path(place), config.setting)


def exported_tasks(config: Config, model: Model, folder: Path) -> Exported:
    """Make and export the tasks of a model."""
    precisions = "fp32,int8" if "best" in config.precisions else "fp32"
    return make(model, folder, max(config.task_counts), config.weights, precisions)


def run(config: Config) -> None:
    """Measure every model that can be had, and write its rows as they come."""
    for name in config.model_names:
        model = MODELS[name]
        if model.reads_file and config.weights is None:
            print(f"{name} is left out: give --weights FILE with the weights of {model.backbone}", flush=True)
            continue
        rows: list[Measured] = []
        with tempfile.TemporaryDirectory(prefix="mosa-peers-") as scratch:
            folder = config.work / name if config.work else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            for row in measured(config, model, folder):
                rows.append(row)
                print(line(name, row), flush=True)
                write_text(config.out / f"{name}.json", json.dumps(described(model, rows), indent=2) + "\n")
                write_text(config.out / "peers.md", report(config.out))


def line(model: str, row: Measured) -> str:
    """A row as it is printed."""
    loads = ", ".join(f"{load.rate:.1f}/s at {count}" for count, load in row.loads.items())
    return f"{model}, {row.tasks} tasks, {row.precision}, {row.peer}: {row.note or loads}"


def described(model: Model, rows: Sequence[Measured]) -> dict[str, object]:
    """The rows of a model with what made them."""
    made = {"date": time.strftime("%Y-%m-%d"), "command": command_line("benchmarks.peers"), "machine": machine()}
    versions = {"commit": git_commit(), "versions": library_versions() | installed_versions(LIBRARIES)}
    return {"title": model.title, **made, **versions, "rows": [row.fields() for row in rows]}


@command
def main() -> None:
    """Measure, print and write."""
    config = tyro.cli(Config, prog="python -m benchmarks.peers", config=(tyro.conf.FlagCreatePairsOff,))
    # As an exception it ends the server that runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    run(config)
    print((config.out / "peers.md").read_text())


if __name__ == "__main__":
    main()
