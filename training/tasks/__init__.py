"""The tasks that `--task` knows."""

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


def find(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: no such task; offers the nearest names.
    """
    if name not in TASKS:
        raise ConfigError(unknown_name("task", name, TASKS))
    return TASKS[name]
