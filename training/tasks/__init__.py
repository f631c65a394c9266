"""The built-in tasks, by the name that `--task` takes."""

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
        ConfigError: there is no such task; names the nearest ones.
    """
    if name not in TASKS:
        raise ConfigError(unknown_name("task", name, TASKS))
    return TASKS[name]
