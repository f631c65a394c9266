"""The built-in tasks, by the name that `--task` takes."""

from collections.abc import Iterable
from pathlib import Path

from mosa_deploy.errors import ConfigError, unknown_name
from training.tasks.base import Task
from training.tasks.benchmark import Benchmark
from training.tasks.cifar10 import Cifar10
from training.tasks.digits import Digits
from training.tasks.eurosat import EuroSat
from training.tasks.fgvc import FGVC
from training.tasks.folder import Folder
from training.tasks.gicd import GICD
from training.tasks.sprites import SpritesLocation, SpritesOrientation
from training.tasks.sprites_labels import SpritesLabels
from training.tasks.vtab import VTAB

BENCHMARKS: tuple[Benchmark, ...] = (*FGVC, *VTAB, *GICD)
"""The 27 tasks of the MoSA paper (arXiv 2312.02923), in the order of its tables."""


def run_name(task: str) -> str:
    """The name of a run of this task where no other is given: `vtab/eurosat` -> `vtab-eurosat`."""
    return task.replace("/", "-")


def by_name(tasks: Iterable[Task]) -> dict[str, Task]:
    """The tasks by name.

    Raises:
        ConfigError: two tasks have the same name, or runs of the same name.
    """
    found: dict[str, Task] = {}
    runs: dict[str, str] = {}
    for task in tasks:
        if task.name in found:
            raise ConfigError(f"two tasks have the name {task.name!r}: give one of them another in training/tasks")
        other = runs.setdefault(run_name(task.name), task.name)
        if other != task.name:
            raise ConfigError(f"runs of the tasks {other!r} and {task.name!r} have the same name: rename one of them")
        found[task.name] = task
    return found


TASKS: dict[str, Task] = by_name(
    (
        *(Digits(), SpritesLocation(), SpritesOrientation(), SpritesLabels(), Cifar10(), EuroSat(), Folder()),
        *BENCHMARKS,
    )
)

OWN_IMAGES = (Digits.name, SpritesLocation.name, SpritesOrientation.name, SpritesLabels.name)
"""Tasks that bring or draw their images: they take neither --data-dir nor --split."""


def find(
    name: str, labels: tuple[Path, ...] = (), group: str | None = None, multi_label: bool = False, least: int = 2
) -> Task:
    """The task of that name, with what --labels, --group and --multi-label say of its images.

    A folder may hold `least` classes; built-in tasks have many.

    Raises:
        ConfigError: there is no such task, and the nearest ones are named; or it takes no such option.
    """
    if name not in TASKS:
        raise ConfigError(unknown_name("task", name, TASKS))
    task = TASKS[name]
    given = {"--labels": bool(labels), "--group": group is not None, "--multi-label": multi_label}
    given["--multi-label"] &= not task.recipe.multi_label
    misplaced = [option for option, is_given in given.items() if is_given]
    if not misplaced and (name != Folder.name or least == Folder.least):
        return task
    if name != Folder.name:
        raise ConfigError(f"{misplaced[0]} goes with --task {Folder.name}: leave it out")
    return Folder(labels, group, multi_label, least)
