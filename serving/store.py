"""The tasks of a store, their versions, and what the operator decided about them.

`mosa_deploy.bundles.store_layout` says where they lie. A task's exported version lies in `tasks/`, its uploaded ones in
`uploads/`. A version is written before the decision that names it, and a decision is one small file: whenever a
process is killed, the store names the old version or the new one. An export that is newer than the last decision is
served.
"""

import json
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.format_version import FileFormat
from mosa_deploy.bundles.record import RECORD, TENSORS, Record, parse_record
from mosa_deploy.bundles.store_layout import DECISIONS, TASKS, UPLOADS, decision_file, task_folder, upload_file
from mosa_deploy.client.schema import ChosenLane
from mosa_deploy.errors import StoreError
from serving.storage import LocalFiles, RemoteFiles

DECISION_FORMAT = FileFormat(decision_file("<task>"), StoreError, remedy="remove it, and upload the task again")


class Decision(BaseModel):
    """`decisions/<task>.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = DECISION_FORMAT.newest
    current: str | None
    """Key of the version that is served; None after a removal."""
    previous: str | None = None
    """Key of the version that a rollback returns to."""
    exported: str | None = None
    """Key of the exported version when this was decided."""
    pinned: bool = False
    lane: ChosenLane | None = None


@dataclass(frozen=True)
class Version:
    """One version of a task; `key` is the sha256 of its record's bytes."""

    key: str
    record: Record

    @property
    def digest(self) -> str:
        """sha256 of its tensors; every answer states it."""
        return self.record.sha256


class TaskStore:
    """Reads and writes the versions of tasks and the decisions about them."""

    def __init__(self, files: LocalFiles | RemoteFiles, limit: int) -> None:
        """`limit` is the most bytes that a bundle may have."""
        self.files, self.limit = files, limit

    def __str__(self) -> str:
        return str(self.files)

    def sweep(self) -> None:
        """Remove the half-written files of killed processes."""
        if isinstance(self.files, LocalFiles):
            for folder in (UPLOADS, DECISIONS):
                self.files.sweep(folder)

    def names(self) -> list[str]:
        """Every task, exported or uploaded, sorted."""
        decided = {name.removesuffix(".json") for name in self.files.names(DECISIONS) if name.endswith(".json")}
        return sorted(decided | set(self.files.names(TASKS)))

    def require_tasks(self) -> None:
        """Raises StoreError if there is no task."""
        if not self.names():
            raise StoreError(f"no task in {self}/{TASKS}: write one with `mosa export --out {self}`")

    def decision(self, name: str) -> Decision:
        """The decision that holds for a task now.

        Raises:
            StoreError: it is damaged, or was written by a newer release.
        """
        exported, where = self.exported(name), f"{self}/{decision_file(name)}"
        try:
            fields = json.loads(self.files.read(decision_file(name)))
            decided = Decision.model_validate(DECISION_FORMAT.upgrade(fields, where))
        except FileNotFoundError:
            return Decision(current=exported, exported=exported)
        except (ValueError, AttributeError, RecursionError):
            raise StoreError(f"{where} is damaged: {DECISION_FORMAT.remedy}") from None
        if exported not in (None, decided.exported, decided.current):
            return decided.model_copy(update={"current": exported, "previous": decided.current, "exported": exported})
        return decided

    def decide(self, name: str, decision: Decision) -> None:
        """Write a decision, which holds from now on."""
        self.files.write(decision_file(name), decision.model_dump_json(indent=2).encode() + b"\n")

    def version(self, name: str, key: str) -> Version:
        """A version with its record.

        Raises:
            MosaError: it is missing or damaged.
        """
        if key == self.exported(name):
            path = f"{task_folder(name)}/{RECORD}"
            return self._checked(name, key, parse_record(self.files.read(path), f"{self}/{path}"))
        return self._checked(name, key, parse_record(self.archive(name, key).record, f"{self}/{upload_file(key)}"))

    def archive(self, name: str, key: str) -> Archive:
        """The bytes of a version.

        Raises:
            MosaError: it is missing or damaged.
        """
        if key == self.exported(name):
            folder = task_folder(name)
            try:
                return Archive(self.files.read(f"{folder}/{RECORD}"), self.files.read(f"{folder}/{TENSORS}"))
            except FileNotFoundError:
                raise StoreError(f"{self}/{folder}/{TENSORS}: no such file; export the task again") from None
        path = upload_file(key)
        try:
            archive = Archive.unpack(self.files.read(path), self.limit)
        except FileNotFoundError:
            raise StoreError(f"{self}/{path}: no such file; upload the task again") from None
        if archive.key != key:
            raise StoreError(f"{self}/{path} was altered: upload the task again")
        return archive

    def keep(self, archive: Archive) -> None:
        """Write a version under its key."""
        self.files.write(upload_file(archive.key), archive.pack())

    def keep_export(self, name: str, decision: Decision) -> None:
        """Copy the exported version to the uploads if it is served, because the next export replaces it."""
        if decision.current and decision.current == decision.exported:
            self.keep(self.archive(name, decision.current))

    def forget_between(self, before: Decision, now: Decision) -> None:
        """Remove the uploaded versions that `before` needed, to answer or to roll back, and `now` does not."""
        for key in {before.current, before.previous} - {now.current, now.previous}:
            if key is not None:
                self.files.remove(upload_file(key))

    def exported(self, name: str) -> str | None:
        """Key of the version that `mosa export` wrote; None if it wrote none."""
        try:
            return Archive(self.files.read(f"{task_folder(name)}/{RECORD}"), b"").key
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _checked(self, name: str, key: str, record: Record) -> Version:
        if record.task != name:
            raise StoreError(
                f"{self}/{task_folder(name)} holds the bundle of '{record.task}': give the folder that name"
            )
        return Version(key, record)
