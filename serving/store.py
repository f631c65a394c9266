"""The tasks of a store, their versions, and what the operator decided about them.

`mosa_deploy.bundles.store_layout` says where they lie. A task's exported version lies in `tasks/`, its uploaded ones in
`uploads/`. A version is written before the decision that names it, and a decision is one small file: whenever a
process is killed, the store names the old version or the new one. An export that is newer than the last decision is
served if `mosa_deploy.bundles.decision` lets it.
"""

import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.decision import (
    Decision,
    ExportNote,
    KeptVersion,
    Source,
    objections,
    parse_note,
)
from mosa_deploy.bundles.gate import PREFIX as GATE
from mosa_deploy.bundles.gate import LabelledImage, pack_images, unpack_images
from mosa_deploy.bundles.record import RECORD, TENSORS, Record, parse_record
from mosa_deploy.bundles.store_layout import (
    DECISIONS,
    EXPORT_NOTE,
    TASKS,
    UPLOADS,
    VALIDATION,
    agreement_file,
    gate_file,
    task_folder,
    upload_file,
)
from mosa_deploy.bundles.validation import PREFIX as CARRIED
from mosa_deploy.bundles.validation import check_validation
from mosa_deploy.errors import BundleError, StoreAccessError, StoreError
from serving.decisions import Decisions
from serving.settings import Settings
from serving.storage import LocalFiles, RemoteFiles, open_files

log = logging.getLogger("mosa_deploy.serving")


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
        self.files, self.limit, self.decisions = files, limit, Decisions(files)

    def __str__(self) -> str:
        return str(self.files)

    def sweep(self) -> None:
        """Remove the half-written files of killed processes."""
        if isinstance(self.files, LocalFiles):
            for folder in (UPLOADS, DECISIONS):
                self.files.sweep(folder)

    def names(self) -> list[str]:
        """Every task, exported or uploaded, sorted."""
        return sorted(self.decisions.revisions().keys() | set(self.files.names(TASKS)))

    def require_readable(self) -> None:
        """Raises StoreError if the store is a file, StoreAccessError if it cannot be read."""
        if isinstance(self.files, LocalFiles) and self.files.root.exists() and not self.files.root.is_dir():
            raise StoreError(f"{self} is a file: name the folder that `mosa export --out` has written")
        self.names()

    def require_tasks(self) -> None:
        """Raises StoreError if there is no task."""
        if not self.names():
            raise StoreError(f"no task in {self}/{TASKS}: write one with `mosa export --out {self}`")

    def decision(self, name: str, revision: int | None = None) -> Decision:
        """The decision that holds for a task now; `revision` is the one that was listed last.

        It does not follow an export that needs consent, and the log says so.

        Raises:
            MosaError: it is damaged, or was written by a newer release.
        """
        exported, decided = self.exported(name), self.decisions.read(name, revision)
        if decided is None:
            return self._undecided(name, exported)
        decided = self._complete(name, decided, exported)
        if exported in (None, decided.exported, decided.current):
            return decided
        return self._with_export(name, exported, decided)

    def _undecided(self, name: str, exported: str | None) -> Decision:
        """The decision about a task that was only exported; exports before it may be kept."""
        if exported is None:
            return Decision(current=None)
        note = self.note(name)
        kept = [key for key in note.kept if f"{key}.mosa" in self.files.names(UPLOADS)] if note else []
        decided = Decision(current=exported, previous=next(iter(kept), None), exported=exported)
        for key in reversed(kept[1:]):
            with suppress(BundleError, StoreError):
                decided = decided.keeping(self.describe(name, key, "export", None))
        return self._complete(name, decided, exported)

    def _with_export(self, name: str, exported: str, decided: Decision) -> Decision:
        """The decision after a newer export: the export is served, or only kept if it needs consent."""
        note = self.note(name)
        try:
            found = self.describe(name, exported, "export", note.exported if note else None)
        except (BundleError, StoreError) as fault:
            log.warning("the newer export is not served: %s", fault, extra={"task": name})
            return decided
        reasons = [reason for reason in objections(decided, found) if reason]
        if reasons and not (note and note.replaces == decided.last):
            way_out = f"roll back to {found.digest[:12]} to serve it, with ?new_classes=true if its classes are meant"
            log.warning("a newer export is not served: %s; %s", ", and ".join(reasons), way_out, extra={"task": name})
            return decided.keeping(found)
        update = {"current": exported, "previous": decided.last, "exported": exported, "since": found.added}
        return decided.model_copy(update=update).keeping(found)

    def _complete(self, name: str, decided: Decision, exported: str | None) -> Decision:
        """Describe the versions that a decision names, but that an earlier release did not describe."""
        if all(key is None or decided.find(key) for key in (decided.previous, decided.current)):
            return decided
        note = self.note(name)
        exports = (decided.exported, exported, *(note.kept if note else ()))
        for key in (decided.previous, decided.current):
            if key and not decided.find(key):
                source: Source = "export" if key in exports else "upload"
                added = note.exported if note and key == exported else None
                # What cannot be read is told when it is needed.
                with suppress(BundleError, StoreError):
                    decided = decided.keeping(self.describe(name, key, source, added))
        return decided

    def describe(self, name: str, key: str, source: Source, added: datetime | None) -> KeptVersion:
        """A version by its record.

        Raises:
            MosaError: it is missing or damaged.
        """
        return KeptVersion.of(key, self.version(name, key).record, source, added)

    def note(self, name: str) -> ExportNote | None:
        """What `mosa export` wrote beside the exported version; None if an earlier release exported it."""
        path = f"{task_folder(name)}/{EXPORT_NOTE}"
        try:
            return parse_note(self.files.read(path), f"{self}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except StoreError as fault:
            log.warning("%s", fault, extra={"task": name})
            return None

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
            # The limit is for what strangers send; a kept export may be larger.
            archive = Archive.unpack(self.files.read(path), sys.maxsize)
        except FileNotFoundError:
            raise StoreError(f"{self}/{path}: no such file; upload the task again") from None
        if archive.key != key:
            raise StoreError(f"{self}/{path} was altered: upload the task again")
        return archive

    def keep(self, archive: Archive) -> None:
        """Write a version under its key."""
        self.files.write(upload_file(archive.key), replace(archive, gate=()).pack())

    def gate(self, name: str) -> tuple[LabelledImage, ...]:
        """The labelled images that are kept for a task.

        Raises:
            StoreError: they are damaged.
        """
        return self._images(gate_file(name), GATE, "send labelled images again")

    def validation(self, version: Version) -> tuple[LabelledImage, ...]:
        """The validation images that came with a version; `Preprocess.unresized` reads them. None if it has none.

        Raises:
            MosaError: they are missing with the whole version, or damaged.
        """
        name = version.record.task
        if version.key != self.exported(name):
            return self.archive(name, version.key).validation
        images = self._images(f"{task_folder(name)}/{VALIDATION}", CARRIED, "export the task again")
        check_validation(images, version.record)
        return images

    def _images(self, path: str, prefix: str, otherwise: str) -> tuple[LabelledImage, ...]:
        """The images in a zip of the store; none if there is no such file."""
        try:
            return unpack_images(self.files.read(path), prefix)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except (ValueError, OSError) as error:
            raise StoreError(f"{self}/{path} is damaged ({error}): remove it, or {otherwise}") from None

    def keep_gate(self, name: str, images: Sequence[LabelledImage]) -> None:
        """Keep labelled images for the next uploads of a task."""
        self.files.write(gate_file(name), pack_images(images))

    def forget_gate(self, name: str) -> None:
        """Remove the labelled images of a task."""
        self.files.remove(gate_file(name))

    def keep_export(self, name: str, decision: Decision) -> None:
        """Copy the exported version to the uploads if it is served, because the next export replaces it."""
        if decision.current is None or decision.current != decision.exported:
            return
        try:
            archive = self.archive(name, decision.current)
            with suppress(BundleError, StoreError):  # Without these images it can still be rolled back to.
                archive = replace(archive, validation=self.validation(self.version(name, decision.current)))
            self.keep(archive)
        except StoreError as fault:
            log.warning("no rollback to the export that was served: %s", fault, extra={"task": name})

    def forget_between(self, before: Decision, now: Decision) -> None:
        """Remove the uploaded versions that `before` kept and `now` does not."""
        try:
            for key in before.keys - now.keys:
                self.files.remove(upload_file(key))
                self.files.remove(agreement_file(key))
        except StoreAccessError as fault:  # the decision holds without it
            log.warning("a version that is no longer kept stays in the store: %s", fault)

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


def check_store(settings: Settings) -> None:
    """See to it that the store can be read, and that there is something to serve.

    Raises:
        MosaError: it cannot be read, or it has no task and nobody may add one.
    """
    store = TaskStore(open_files(settings.artifacts), settings.max_upload)
    try:
        store.require_readable()
        if not settings.admin_keys:
            store.require_tasks()
    finally:
        store.files.close()
