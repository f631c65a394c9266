"""The tasks of a joint run: from its file and the command line, and checked before anything starts."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, PROBES
from mosa_deploy.bundles.record import TASK_NAME, TASK_NAME_RULE
from mosa_deploy.errors import ConfigError, MosaError
from mosa_deploy.utils.command_line import build, changed, options_of
from training.arguments import check_own_images
from training.config import TuneConfig
from training.method_settings import AUTO
from training.presets import preset, task_of
from training.recipe import Recipe, flag
from training.task_file import OPTIONS, Options, load_task_file
from training.tune_options import JointOptions, ReadOptions

OF_A_TASK = (
    *("task", "data_dir", "labels", "group", "split", "shots", "fraction", "draw"),
    *("white_level", "jpeg", "skip_duplicates", "exemplars"),
    *options_of(ReadOptions),
)
"""Options in which the tasks of a joint run may differ: those of their images."""

OF_THE_COMMAND = (
    *("name", "out", "resume", "init", "extend", "distil", "multi_label", "loss"),
    *options_of(JointOptions),
)
"""Options that the file does not have, because the run sets them or the tasks cannot use them."""

KINDS = {name: kind for name, kind in OPTIONS.items() if name not in OF_THE_COMMAND}

IN_THE_FILE = ("task", "name", "data_dir", "labels", "group", "multi_label", "loss", "init", "extend")
"""Options that the command line of a joint run does not take."""


def joint_tasks(config: TuneConfig) -> tuple[list[TuneConfig], Recipe]:
    """The options of each task of a joint run, and the recipe of the run: the first task's, for the most epochs of all.

    Raises:
        ConfigError: the file cannot be read, an option, a path or a backbone cannot be used, or the tasks do not go
            together; lists every fault at once.
    """
    path = config.joining.joint
    assert path is not None
    given = changed(config)
    faults = [f"{flag(name)} does not go with --joint: leave it out" for name in IN_THE_FILE if name in given]
    file = load_task_file(path, KINDS, f"--joint {path}", ("data_dir", "labels", "backbone_weights"))
    faults += file.texts()
    if len(file.tasks) < 2:
        faults.append("a joint run takes two tasks or more")
    configs, recipes = dict[str, TuneConfig](), dict[str, Recipe]()
    for name, options in file.tasks.items():
        if file.faults.keys() & {"defaults", f"tasks.{name}"}:
            continue  # What follows from these faults would be told once more.
        try:
            configs[name] = configured(config, name, options, given)
            recipes[name] = checked(configs[name])
        except MosaError as error:
            faults.append(f"[tasks.{name}] {error}")
    if not faults:
        faults += [*differing(configs), *unfit(next(iter(configs.values())), [*recipes.values()])]
    if faults:
        raise ConfigError(f"--joint {path}: {'; '.join(faults)}")
    first, *_ = recipes.values()
    epochs = max(recipe.epochs for recipe in recipes.values())
    return [*configs.values()], replace(first, epochs=epochs)


def configured(config: TuneConfig, name: str, options: Options, given: dict[str, Any]) -> TuneConfig:
    """The options of a task as those of `mosa tune`; the command line goes before the file.

    Raises:
        ConfigError: an option is out of range.
    """
    shots = options["shots"]
    if len(shots) > 1:
        raise ConfigError(f"shots = {list(shots)}: a joint run tunes each task once, give one number")
    own = {"name": name, "shots": shots[0] if shots else None, "out": joint_folder(config) / name}
    said = {option: value for option, value in given.items() if option not in (*IN_THE_FILE, *options_of(JointOptions))}
    return build(TuneConfig, options | said | own)


def joint_folder(config: TuneConfig) -> Path:
    """The folder of a joint run, with a folder for each task."""
    assert config.joining.joint is not None
    return config.out or Path("runs") / config.joining.joint.stem


def checked(config: TuneConfig) -> Recipe:
    """The recipe of a task by itself.

    Raises:
        MosaError: an option is out of range, or the task has no name that it may have.
    """
    if not re.fullmatch(TASK_NAME, config.name or ""):
        raise ConfigError(f"is no name of a task: {TASK_NAME_RULE}")
    config.checked_method()
    check_own_images(config)
    recipe = config.resolve(preset(task_of(config), config.backbone))
    if recipe.multi_label:
        raise ConfigError("has several labels per image: a joint run takes tasks with one class per image")
    return recipe


def differing(configs: dict[str, TuneConfig]) -> Iterator[str]:
    """One text for each option of the whole run in which tasks differ."""
    options = {name: changed(config) for name, config in configs.items()}
    for option in sorted({option for given in options.values() for option in given} - {*OF_A_TASK, "name", "out"}):
        values = {name: _shown(given.get(option)) for name, given in options.items()}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{value} for {name}" for name, value in values.items())
            yield f"{option} is {listed}: a joint run has one, put it into [defaults]"


def unfit(config: TuneConfig, recipes: Sequence[Recipe]) -> Iterator[str]:
    """What a joint run cannot do; `config` stands for all tasks in the options of the whole run."""
    backbones = sorted({recipe.backbone for recipe in recipes})
    if len(backbones) > 1:
        yield f"the tasks' own backbones are {' and '.join(backbones)}: name one for all of them with --backbone"
    if config.method in (AUTO, *PROBES, *BACKBONE_METHODS):
        yield f"--method {config.method} has no adapter to share: choose one that has"
    recipe = recipes[0]
    if recipe.balance != "none":
        yield f"--balance {recipe.balance}: a joint run draws by --sampling-temperature, leave it out"
    if recipe.mixup or recipe.cutmix:
        yield "--mixup and --cutmix would blend images of different tasks: leave them out"
    if recipe.merge_scale == "learned":
        yield "--merge-scale learned is fitted to one task: leave it out"


def _shown(value: object) -> str:
    return "not given" if value is None else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
