"""A file of tasks, for `mosa fleet` and `mosa compare --tasks-file`: options for all tasks, and for each of them.

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

import re
import tomllib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mosa_deploy.errors import ConfigError, unknown_name
from mosa_deploy.utils.command_line import options_of
from mosa_deploy.utils.text import decode_text
from training.config import TuneConfig
from training.method_settings import METHODS_OF
from training.tasks import TASKS
from training.tune_options import JointOptions, LabelOptions, ReadOptions, StartOptions

Options = dict[str, Any]
"""Options of `mosa tune` by name, those of its groups too, except that `shots` is a tuple."""

Kinds = Mapping[str, Any]
"""Option -> its type."""

OPTIONS: Kinds = options_of(TuneConfig) | {"shots": int | tuple[int, ...]}

OF_THE_COMPARISON = {
    *("name", "method", "features", "seed", "draw", "out", "resume", "device"),
    *METHODS_OF,
    *options_of(ReadOptions),
    *options_of(LabelOptions),
    *options_of(StartOptions),
    *options_of(JointOptions),
}
"""What differs between the runs of a task, or is said for all of them on the command line."""

COMPARED: Kinds = {name: kind for name, kind in OPTIONS.items() if name not in OF_THE_COMPARISON}
"""The options of a comparison's tasks."""

HEADER = re.compile(
    r"""^[ \t]*\[[ \t]*tasks[ \t]*\.[ \t]*(?P<name>[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\][ \t]*(?:\#.*)?$""", re.MULTILINE
)
"""The head of a task's table."""


@dataclass(frozen=True)
class TaskFile:
    """What a file of tasks holds."""

    tasks: dict[str, Options]
    faults: dict[str, list[str]]
    """Table -> one text for each of its faults; tables without any are absent."""

    def texts(self) -> list[str]:
        """All faults."""
        return [text for texts in self.faults.values() for text in texts]


def read_task_file(path: Path) -> dict[str, Options]:
    """The options of each task in the file of a comparison.

    Raises:
        ConfigError: the file cannot be read, or holds faults; lists every fault at once.
    """
    found = load_task_file(path, COMPARED, f"--tasks-file {path}")
    if found.faults:
        raise ConfigError(f"--tasks-file {path}: {'; '.join(found.texts())}")
    return found.tasks


def load_task_file(path: Path, kinds: Kinds, where: str, present: Container[str] = ()) -> TaskFile:
    """The options of each task in a file, and the file's faults; `where` names the file in errors.

    Tasks may have the options in `kinds`. A path that an option in `present` gives has to be there.

    Raises:
        ConfigError: the file cannot be read, or has no tables of tasks.
    """
    try:
        text, doubled = _apart(decode_text(path.read_bytes()))
        content = tomllib.loads(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{where} cannot be read ({reason}): give a TOML file of tasks") from None
    faults = [f"[{name}] is no table of this file" for name in sorted(content.keys() - {"defaults", "tasks"})]
    tables = {"defaults": content.get("defaults", {}), "tasks": content.get("tasks", {})}
    faults += [f"{name} is no table" for name, table in tables.items() if not isinstance(table, dict)]
    if not faults and not tables["tasks"]:
        faults.append("it has no task: add [tasks.NAME]")
    if faults:
        raise ConfigError(f"{where}: {'; '.join(faults)}")
    tasks = {f"tasks.{name}": options for name, options in tables["tasks"].items()}
    read: dict[str, Options] = {}
    found: dict[str, list[str]] = {}
    for name, options in {"defaults": tables["defaults"], **tasks}.items():
        read[name] = {}
        found[name] = [f"[{name}] has a name that an earlier table has"] if name in doubled else []
        found[name] += _read(name, options, Reading(kinds, path.parent, present), read[name])
    return TaskFile(
        {name: _named(name, read["defaults"] | read[f"tasks.{name}"]) for name in tables["tasks"]},
        {name: texts for name, texts in found.items() if texts},
    )


def _apart(text: str) -> tuple[str, set[str]]:
    """The text in which every task's table has a name of its own, and the new names of those that had another's.

    TOML's parser stops at a doubled name, and would not tell of the faults after it.
    """
    seen: set[str] = set()
    renamed: set[str] = set()

    def named(head: re.Match[str]) -> str:
        name = head["name"].strip("\"'")
        if name not in seen:
            seen.add(name)
            return head[0]
        line = text.count("\n", 0, head.start()) + 1
        renamed.add(f"tasks.{name} in line {line}")
        return f"[tasks.'{name} in line {line}']"

    return HEADER.sub(named, text), renamed


@dataclass(frozen=True)
class Reading:
    """How the options of a table are read."""

    kinds: Kinds
    folder: Path
    """Paths are relative to it."""
    present: Container[str]
    """Options whose paths have to be there."""


def _read(table: str, options: object, reading: Reading, read: Options) -> Iterator[str]:
    """Put the options of a table into `read`; yields one text for each fault."""
    if not isinstance(options, dict):
        yield f"{table} is no table"
        return
    for name, value in options.items():
        if name not in reading.kinds:
            yield f"[{table}] {unknown_name('option', name, reading.kinds)}"
            continue
        try:
            found = TypeAdapter(reading.kinds[name]).validate_python(value)
        except ValidationError as error:
            yield f"[{table}] {name} = {value!r}: {error.errors()[0]['msg'].lower()}"
            continue
        if name == "task" and found not in TASKS:
            yield f"[{table}] {unknown_name('task', found, TASKS)}"
        read[name] = _below(reading.folder, found)
        if name in reading.present:
            paths = read[name] if isinstance(read[name], tuple) else (read[name],)
            yield from (f"[{table}] {name}: there is no {path}" for path in paths if not path.exists())


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
