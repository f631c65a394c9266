"""A file of tasks for `mosa compare --tasks-file`: options for all tasks, and for each of them.

    [defaults]
    backbone = "vit_small_patch14_dinov2.lvd142m"
    backbone_weights = "weights/dinov2.safetensors"
    image_size = 98
    shots = [5, 20]

    [tasks.flowers]
    data_dir = "flowers.tar"

    [tasks.digits]
    task = "digits"
    epochs = 10

Options are those of `mosa tune`, without their dashes. Paths are relative to the file. A task that does not say which
it is reads its images as `folder` does, or is the built-in task of its name. `shots` may list several numbers.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from mosa_deploy.errors import ConfigError, unknown_name
from mosa_deploy.utils.text import decode_text
from training.config import TuneConfig
from training.method_settings import METHODS_OF
from training.tasks import TASKS

Options = dict[str, Any]
"""Fields of `TuneConfig`, except that `shots` is a tuple."""

OF_THE_COMPARISON = ("name", "method", "features", "seed", "draw", "out", "resume", "device", "reading", "labelling")
"""What differs between the runs of a task, or is said for all of them on the command line."""

KINDS: Mapping[str, Any] = {
    name: kind
    for name, kind in get_type_hints(TuneConfig).items()
    if name not in OF_THE_COMPARISON and name not in METHODS_OF
} | {"shots": int | tuple[int, ...]}
"""Option of a task -> its type."""


def read_task_file(path: Path) -> dict[str, Options]:
    """The options of each task in a file.

    Raises:
        ConfigError: the file cannot be read, or holds faults; lists every fault at once.
    """
    try:
        content = tomllib.loads(decode_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--tasks-file {path} cannot be read ({reason}): give a TOML file of tasks") from None
    faults = [f"[{name}] is no table of this file" for name in sorted(content.keys() - {"defaults", "tasks"})]
    tables = {"defaults": content.get("defaults", {}), "tasks": content.get("tasks", {})}
    faults += [f"{name} is no table" for name, table in tables.items() if not isinstance(table, dict)]
    if not faults and not tables["tasks"]:
        faults.append("it has no task: add [tasks.NAME]")
    if faults:
        raise ConfigError(f"--tasks-file {path}: {'; '.join(faults)}")
    tasks = {f"tasks.{name}": options for name, options in tables["tasks"].items()}
    read: dict[str, Options] = {}
    for name, options in {"defaults": tables["defaults"], **tasks}.items():
        read[name] = {}
        faults += _read(name, options, path.parent, read[name])
    if faults:
        raise ConfigError(f"--tasks-file {path}: {'; '.join(faults)}")
    return {name: _named(name, read["defaults"] | read[f"tasks.{name}"]) for name in tables["tasks"]}


def _read(table: str, options: object, folder: Path, read: Options) -> Iterator[str]:
    """Put the options of a table into `read`; yields one text for each fault."""
    if not isinstance(options, dict):
        yield f"{table} is no table"
        return
    for name, value in options.items():
        if name not in KINDS:
            yield f"[{table}] {unknown_name('option', name, KINDS)}"
            continue
        try:
            found = TypeAdapter(KINDS[name]).validate_python(value)
        except ValidationError as error:
            yield f"[{table}] {name} = {value!r}: {error.errors()[0]['msg'].lower()}"
            continue
        if name == "task" and found not in TASKS:
            yield f"[{table}] {unknown_name('task', found, TASKS)}"
        read[name] = _below(folder, found)


def _below(folder: Path, value: Any) -> Any:
    """The value; paths in it are relative to the folder."""
    if isinstance(value, tuple):
        return tuple(_below(folder, each) for each in value)
    return folder / value if isinstance(value, Path) else value


def _named(name: str, options: Options) -> Options:
    """The options with the task that reads the images, and with `shots` as a tuple."""
    task = options.get("task", name if name in TASKS else "folder")
    shots = options.get("shots", ())
    return options | {"task": task, "shots": shots if isinstance(shots, tuple) else (shots,)}
