"""The tasks of a fleet: from its file and the command line, and checked before anything starts."""

import re
from dataclasses import replace
from pathlib import Path

from mosa_deploy.bundles.record import TASK_NAME, TASK_NAME_RULE
from mosa_deploy.errors import ConfigError, MosaError
from mosa_deploy.utils.command_line import build, options_of
from training import run
from training.arguments import check_own_images
from training.config import TuneConfig
from training.fitting import check_fit
from training.fleet.options import FleetConfig
from training.fleet.stages import FleetTask
from training.plan import find_splits
from training.presets import preset, task_of
from training.task_file import OPTIONS, Options, load_task_file
from training.tune_options import JointOptions

OF_THE_FLEET = ("name", "out", "resume", "init", "extend", "distil", *options_of(JointOptions))
"""Options of `mosa tune` that the fleet itself sets, and those that need a run which is there before it."""

KINDS = {name: kind for name, kind in OPTIONS.items() if name not in OF_THE_FLEET}

OF_THE_BACKBONE = ("backbone", "backbone_weights", "random_weights", "image_size")
"""Options that another backbone makes void."""


def fleet_tasks(config: FleetConfig) -> list[FleetTask]:
    """The tasks of a fleet.

    Raises:
        ConfigError: the file cannot be read, an option, a path or a backbone cannot be used, or a task was begun with
            other options; lists every fault at once.
    """
    # The weights of a backbone that the command line replaces need not be there.
    present = ["data_dir", "labels", *([] if config.backbone else ["backbone_weights"])]
    # Whole paths mean the same in every folder and on every machine.
    file = load_task_file(config.tasks_file.absolute(), KINDS, str(config.tasks_file), present)
    tasks, faults = list[FleetTask](), file.texts()
    for name, options in file.tasks.items():
        if file.faults.keys() & {"defaults", f"tasks.{name}"}:
            continue  # What follows from these faults would be told once more.
        try:
            tasks.append(checked(FleetTask(configured(config, name, options), config)))
        except MosaError as error:
            faults.append(f"[tasks.{name}] {error}")
    if faults:
        raise ConfigError(f"{config.tasks_file}: {'; '.join(faults)}")
    return tasks


def configured(config: FleetConfig, name: str, options: Options) -> TuneConfig:
    """The options of a task as those of `mosa tune`; the command line goes before the file.

    Raises:
        ConfigError: an option is out of range.
    """
    shots = options["shots"]
    if len(shots) > 1:
        raise ConfigError(f"shots = {list(shots)}: a fleet tunes each task once, give one number")
    if config.backbone is not None:
        options = {option: value for option, value in options.items() if option not in OF_THE_BACKBONE}
    given = {option: getattr(config, option, None) for option in OF_THE_BACKBONE}
    given = {
        option: value.absolute() if isinstance(value, Path) else value
        for option, value in given.items()
        if value is not None
    }
    own = {"name": name, "shots": shots[0] if shots else None, "out": config.out / "runs" / name}
    return build(TuneConfig, options | given | own)


def checked(task: FleetTask) -> FleetTask:
    """The task, which also knows whether it has test images.

    Raises:
        MosaError: it cannot be tuned so, or its run was begun with other options.
    """
    config = task.config
    if not re.fullmatch(TASK_NAME, task.name):
        raise ConfigError(f"is no name of a task: {TASK_NAME_RULE}")
    config.checked_method()
    if changes := task.other_options():
        raise ConfigError(
            f"was begun with other options ({changes}): repeat them, give another --out, or remove {task.folder} to"
            " tune it anew"
        )
    if task.tuned:
        kept = run.read_split(task.folder)
        return replace(task, tested=kept is None or bool(kept["test"]))
    check_own_images(config)
    known = preset(task_of(config), config.backbone)
    check_fit(config, known)
    return replace(task, tested=bool(find_splits(task_of(config), config).test))
