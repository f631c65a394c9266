"""The tasks of a comparison: from the command line, from a file of tasks, or both; checked before anything runs."""

from pathlib import Path

from mosa_deploy.errors import ConfigError, DataError, MosaError, unknown_name
from mosa_deploy.utils.command_line import build
from training import presets
from training.config import TuneConfig
from training.fitting import check_fit
from training.options import CompareConfig, names
from training.recipe import Recipe
from training.task_file import Options, read_task_file
from training.tasks import TASKS, run_name
from training.tasks.benchmark import Benchmark
from training.tasks.subset import Subset

USUAL = "digits,sprites-location"
"""What is compared where nothing is said."""

OVERRIDES = ("epochs", "backbone", "backbone_weights", "image_size", "adapt_blocks", "data_dir")
"""Options of the command line that go before those of the file of tasks."""


def compared_tasks(config: CompareConfig) -> list[TuneConfig]:
    """What each task, with each number of images per class, is tuned with; methods, settings and seeds are added later.

    Raises:
        ConfigError: a task is unknown, or the file of tasks has faults.
        DataError: --data-dir is no folder.
    """
    file = {} if config.tasks_file is None else read_task_file(config.tasks_file)
    chosen = names(config.tasks) or [*file] or names(USUAL)
    return [base for name in chosen for base in _bases(config, name, file)]


def _bases(config: CompareConfig, name: str, file: dict[str, Options]) -> list[TuneConfig]:
    options = dict(file.get(name, {}))
    dataset, data_dir = source(config, name, options)
    given = {option: getattr(config, option) for option in OVERRIDES if getattr(config, option) is not None}
    if config.precision != "auto":
        given["precision"] = config.precision
    options |= given | {"task": dataset, "data_dir": data_dir, "name": run_name(name)}
    shots = tuple(map(int, names(config.shots))) or options.get("shots", ()) or (None,)
    return [build(TuneConfig, options | {"shots": each}) for each in shots]


def source(config: CompareConfig, name: str, options: Options) -> tuple[str, Path | None]:
    """(name in `training.tasks`, path of the images) of a task; `options` are those of the file of tasks.

    A task that is neither in the file nor built in is a folder or archive in --data-dir, and is tuned as `folder`.

    Raises:
        ConfigError: there is no such task.
        DataError: --data-dir is no folder.
    """
    found: Path | None = options.get("data_dir")
    if config.data_dir is not None:
        if not config.data_dir.is_dir():
            raise DataError(f"--data-dir {config.data_dir}: no such folder; give the one that holds the tasks' images")
        archives = [path for kind in ("t*", "zip") for path in sorted(config.data_dir.glob(f"{name}.{kind}"))]
        found = next((path for path in (config.data_dir / name, *archives) if path.exists()), found)
    if found is None and isinstance(TASKS.get(name), Benchmark):
        found = config.data_dir
    if options:
        return options["task"], found
    if name in TASKS:
        return name, found
    if found is None:
        raise ConfigError(unknown_name("task", name, TASKS) + "; or give --data-dir that holds its folder or archive")
    return "folder", found


def preset(base: TuneConfig) -> Recipe:
    """The preset of the task that reads the images, with the backbone that is named."""
    return presets.preset(presets.task_of(base), base.backbone)


def is_drawn(base: TuneConfig) -> bool:
    """Whether a seed draws the training images, and not only the order in which they are seen."""
    return base.shots is not None or base.fraction is not None


def check(bases: list[TuneConfig], methods: list[str]) -> None:
    """Check all options, images and backbones, so that a long comparison does not stop halfway.

    Raises:
        MosaError: a method is unknown or does not fit a backbone, an option is out of range, or images are missing or
            too few; lists every fault at once.
    """
    for method in methods:
        TuneConfig(task="", method=method).checked_method()
    found: dict[str, list[MosaError]] = {base.name or "": [] for base in bases}
    for base in bases:
        found[base.name or ""] += faults(base, methods)
    tasks: dict[str, list[str]] = {}
    for name, errors in found.items():
        for text in dict.fromkeys(map(str, errors)):
            tasks.setdefault(text, []).append(name)
    texts = [text if len(named) == len(found) else f"{', '.join(named)}: {text}" for text, named in tasks.items()]
    if texts:
        raise ConfigError("; ".join(texts))


def faults(base: TuneConfig, methods: list[str]) -> list[MosaError]:
    """What stands against tuning a task with these methods."""
    found: list[MosaError] = []
    try:
        if preset(base).multi_label:
            raise ConfigError(
                f"task {base.name} has several labels per image, and a comparison is by accuracy: tune it by mosa tune"
            )
        check_images(base)
    except MosaError as error:
        found.append(error)
    for method in methods:
        try:
            check_fit(base.for_method(method), preset(base))
        except MosaError as error:
            found.append(error)
    return found


def check_images(base: TuneConfig) -> None:
    """Raises DataError if a task lacks images to tune on or to test on."""
    splits = presets.task_of(base).splits(base.data_dir, base.split)
    if not splits.train or not splits.test:
        lacking = "test" if splits.train else "training"
        raise DataError(f"task {base.name} has no {lacking} set: a comparison needs both")
    Subset(base.shots, base.fraction).of(splits)
