"""The built-in tasks, by the name that `--task` takes."""

from pathlib import Path

from mosa_deploy.errors import ConfigError, unknown_name
from training.tasks.base import Task
from training.tasks.cifar10 import Cifar10
from training.tasks.digits import Digits
from training.tasks.eurosat import EuroSat
from training.tasks.folder import Folder
from training.tasks.sprites import SpritesLocation, SpritesOrientation

TASKS: dict[str, Task] = {
    task.name: task for task in (Digits(), SpritesLocation(), SpritesOrientation(), Cifar10(), EuroSat(), Folder())
}

OWN_IMAGES = (Digits.name, SpritesLocation.name, SpritesOrientation.name)
"""Tasks that bring or draw their images: they take neither --data-dir nor --split."""


def find(name: str, labels: tuple[Path, ...] = (), group: str | None = None) -> Task:
    """The task of that name, with what --labels and --group say of its images.

    Raises:
        ConfigError: there is no such task, and the nearest ones are named; or it takes neither labels nor groups.
    """
    if name not in TASKS:
        raise ConfigError(unknown_name("task", name, TASKS))
    if not labels and group is None:
        return TASKS[name]
    if name != Folder.name:
        raise ConfigError(f"{'--labels' if labels else '--group'} goes with --task {Folder.name}: leave it out")
    return Folder(labels, group)
