"""Read and check the arguments of this package's commands, before anything that loads torch is imported."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mosa_deploy.bundles.record import read_record
from mosa_deploy.errors import BackboneError, ConfigError, DataError
from mosa_deploy.utils.command_line import parse
from training.config import TuneConfig
from training.fleet.options import TABLE, FleetConfig
from training.method_settings import GROUPS
from training.options import CompareConfig, EvaluateConfig
from training.presets import preset, task_of
from training.recipe import Recipe
from training.start import completed
from training.tasks import OWN_IMAGES, TASKS
from training.tasks.benchmark import Benchmark


def tune_config(arguments: Sequence[str] | None = None, prog: str = "python -m training.tune") -> TuneConfig:
    """Read the options of `mosa tune`.

    Raises:
        MosaError: an option is invalid, or a file is missing.
    """
    config = parse(TuneConfig, prog, arguments, GROUPS, preset_hints(arguments))
    config.checked_method()
    if config.joining.joint is not None:
        if not config.joining.joint.is_file():
            raise ConfigError(f"--joint {config.joining.joint}: no such file; give a TOML file of tasks")
        return config
    words = sys.argv[1:] if arguments is None else arguments
    config = completed(config, named=any(word.partition("=")[0] == "--method" for word in words))
    task = task_of(config)
    config.resolve(preset(task, config.backbone))
    _check_data_dir(config.data_dir)
    check_own_images(config)
    if isinstance(task, Benchmark):
        task.locate(config.data_dir)
    _check_weights(config.backbone_weights)
    return config


def evaluate_config(
    arguments: Sequence[str] | None = None, prog: str = "python -m training.evaluate"
) -> EvaluateConfig:
    """Read the options of `mosa evaluate`.

    Raises:
        MosaError: a file is missing, or the bundle is damaged.
    """
    config = parse(EvaluateConfig, prog, arguments)
    _check_data_dir(config.data_dir)
    if config.bundle is not None:
        read_record(config.bundle)
    return config


def compare_config(arguments: Sequence[str] | None = None, prog: str = "python -m training.compare") -> CompareConfig:
    """Read the options of `mosa compare`.

    Raises:
        ConfigError: a file is missing.
    """
    config = parse(CompareConfig, prog, arguments)
    if config.beside is not None and not config.beside.is_file():
        raise ConfigError(f"--beside {config.beside}: no such file; give the compare.csv of an earlier comparison")
    if config.tasks_file is not None and not config.tasks_file.is_file():
        raise ConfigError(f"--tasks-file {config.tasks_file}: no such file")
    _check_weights(config.backbone_weights)
    return config


def fleet_config(arguments: Sequence[str] | None = None, prog: str = "python -m training.fleet") -> FleetConfig:
    """Read the options of `mosa fleet`.

    Raises:
        ConfigError: an option is invalid, or a file is missing.
    """
    config = parse(FleetConfig, prog, arguments)
    if not config.tasks_file.is_file():
        raise ConfigError(f"{config.tasks_file}: no such file; give a TOML file of tasks")
    if config.beside is not None and not (config.beside / TABLE).is_file():
        raise ConfigError(f"--beside {config.beside} holds no {TABLE}: give the --out of an earlier fleet")
    _check_weights(config.backbone_weights)
    return config


def check_own_images(config: TuneConfig) -> None:
    """Raises ConfigError if a task that brings its own images is given others."""
    if config.task in OWN_IMAGES and (config.data_dir is not None or config.split is not None):
        raise ConfigError(
            f"--task {config.task} brings its own images and split: leave out --data-dir and --split, or tune on a"
            " folder with --task folder"
        )


def preset_hints(arguments: Sequence[str] | None) -> dict[str, str]:
    """Setting -> a text for the help that gives its value in the preset.

    If `arguments` name a task, this is its preset's value; otherwise the most common one, with the tasks that differ,
    but for those of benchmarks.
    """
    given = list(arguments or ())
    named = [given[i + 1] for i in range(len(given) - 1) if given[i] == "--task" and given[i + 1] in TASKS]
    shown = named or [name for name, task in TASKS.items() if not isinstance(task, Benchmark)]
    recipes = {name: TASKS[name].recipe for name in shown}
    hints = {}
    for field in dataclasses.fields(Recipe):
        values = {name: getattr(recipe, field.name) for name, recipe in recipes.items()}
        (usual, _), *_ = Counter(values.values()).most_common()
        others = [f"{_shown(value)} for {name}" for name, value in values.items() if value != usual]
        hints[field.name] = "; ".join([f"preset: {_shown(usual)}", *others])
    fixed = {"targets": "q v", "groups": "2", "trials": "9", "worth": "1", "loss": "bce"}
    return hints | {name: f"default: {value}" for name, value in fixed.items()}


def _shown(value: object) -> str:
    if value is None:  # --adapt-blocks
        return "all"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_weights(path: Path | None) -> None:
    if path is not None and not path.exists():
        raise BackboneError(f"--backbone-weights {path}: no such file or folder")


def _check_data_dir(folder: Path | None) -> None:
    if folder is not None and not folder.exists():
        raise DataError(f"--data-dir {folder}: no such folder; give a folder, or a tar or zip archive of images")
