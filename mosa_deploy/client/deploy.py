"""Bring a tuned task to a running service: `mosa deploy runs/digits --to http://localhost:3000`.

A run's bundle is packed as it is: the service merges the experts of a split one itself.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.decision import class_changes
from mosa_deploy.bundles.record import Record
from mosa_deploy.client.client import Client
from mosa_deploy.client.schema import ChosenLane, Task
from mosa_deploy.errors import ConfigError, ServiceError

SECONDS = 180.0
"""How long the service may take: it proves the version, and may ask two versions about labelled images."""

FLAGS = {
    "send ?new_classes=true": "add --new-classes",
    "?force=true": "--force",
    "?margin=": "--margin ",
    "send one of the service's admin keys as `Authorization: Bearer ...`": "give an admin's key by --key or MOSA_KEY",
    "send one of the service's admin keys": "give an admin's key by --key or MOSA_KEY",
}
"""What a request would have to say -> what this command has for it."""


@dataclass(frozen=True)
class DeployConfig:
    """What `mosa deploy` is asked for."""

    source: Path
    """The folder of a run or of another bundle, or a `.mosa` file."""
    address: str
    key: str | None = None
    lane: ChosenLane | None = None
    new_classes: bool = False
    gate: Path | None = None
    """A folder with one subfolder of labelled images per class."""
    margin: float | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for a margin that cannot be."""
        if self.margin is not None and not 0 < self.margin < 1:
            raise ConfigError(f"--margin {self.margin:g}: above 0 and below 1")


def deploy(config: DeployConfig) -> Task:
    """Pack a bundle, upload it, and print what is served now.

    Raises:
        MosaError: there is no whole bundle, or its labelled images cannot be used.
        ConfigError: it has other classes than the served version, and nobody says that this is meant.
        ServiceError: the service refuses it.
    """
    archive = Archive.read(config.source, config.gate)
    record = archive.bundle().record
    with Client(config.address, config.key, timeout=SECONDS) as client:
        try:
            before = served(client, record.task)
            new_classes = config.new_classes or confirmed(before, record)
            content = archive.pack()
            task = client.put(record.task, content, new_classes, config.lane, config.margin, config.force)
        except ServiceError as error:
            raise ServiceError(error.status, by_flags(error.detail)) from None
    print(summary(task, before))
    return task


def served(client: Client, name: str) -> Task | None:
    """The task as the service has it; None if it has none of that name."""
    try:
        return client.task(name)
    except ServiceError as error:
        if error.status == 404:
            return None
        raise


def confirmed(before: Task | None, record: Record) -> bool:
    """Whether the classes change and the user, asked on a terminal, agrees.

    Raises:
        ConfigError: they change, and the user does not agree or cannot be asked.
    """
    name, changes = record.task, class_changes(before, record) if before and before.classes else None
    if changes is None:
        return False
    if sys.stdin.isatty() and sys.stdout.isatty():
        print(f"The classes of '{name}' would change: {changes}.")
        try:
            answer = input("Serve them? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() in ("y", "yes"):
            return True
        raise ConfigError(f"'{name}' stays as it was: the new classes were not confirmed")
    raise ConfigError(f"the classes of '{name}' would change ({changes}): add --new-classes if that is meant")


def by_flags(detail: str) -> str:
    """An error of the service, with this command's flags as the way out."""
    for request, flag in FLAGS.items():
        detail = detail.replace(request, flag)
    return detail


def summary(task: Task, before: Task | None) -> str:
    """What is served now, and what was before."""
    by = f"{task.runtime} {task.precision}" if task.runtime else "its graph"
    lines = [f"{task.task}: bundle {task.bundle[:12]}, {len(task.classes)} classes, {task.lane} lane, by {by}"]
    if before and before.bundle == task.bundle:
        lines.append("the same bundle was served before")
    elif before and before.bundle:
        lines.append(f"bundle {before.bundle[:12]} was served before: a rollback brings it back")
    if task.gate:
        earlier = task.gate.accuracy_before
        other = "" if earlier is None else f", {earlier:.4f} by the version before (margin {task.gate.margin:g})"
        lines.append(f"accuracy {task.gate.accuracy:.4f} on {task.gate.images} labelled images{other}")
    return "\n".join(lines)
