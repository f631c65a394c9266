"""An export takes the place of what the store serves only under the store's rule, as an upload does.

It says so before the work begins. What it replaces is kept among the uploads, for a rollback and for a service that
still runs on it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.decision import Decision, ExportNote, KeptVersion, now, objections, parse_decision, parse_note
from mosa_deploy.bundles.record import RECORD, Record, parse_record
from mosa_deploy.bundles.store_layout import EXPORT_NOTE, StoreLayout, upload_file
from mosa_deploy.errors import MosaError, StoreError
from mosa_deploy.utils.files import write_bytes, write_text

KEPT = 4
"""How many exports that were replaced stay, for a task about which the service decided nothing."""


@dataclass(frozen=True)
class Replaced:
    """What an export of a task takes the place of."""

    store: StoreLayout
    task: str
    decided: Decision
    """What is decided, or what holds if nothing was: that the export of before is served."""

    @classmethod
    def find(cls, store: StoreLayout, record: Record, new_classes: bool, replace_upload: bool) -> "Replaced":
        """Look at what the store serves as this task.

        Raises:
            StoreError: it was uploaded, or has other classes, and no flag says that this is meant.
        """
        path = store.decision(record.task)
        if path:
            decided = _described(store, record.task, parse_decision(path.read_bytes(), str(path)))
        else:
            decided = _exported(store, record.task)
        uploaded, other = objections(decided, record)
        faults = []
        if uploaded and not replace_upload:
            faults.append(f"{uploaded}, add --replace-upload to replace it at the service's next start")
        if other and not new_classes:
            faults.append(f"{other}, add --new-classes if that is meant")
        if faults:
            raise StoreError(f"'{record.task}' in {store.root}: {'; '.join(faults)}")
        return cls(store, record.task, decided)

    def keep(self) -> None:
        """Keep the served export among the uploads."""
        folder = self.store.task(self.task)
        try:
            archive = Archive.of(folder)
        except MosaError:
            return
        path = self.store.root / upload_file(archive.key)
        if archive.key == self.decided.last and not path.exists():
            write_bytes(path, archive.pack())

    def write_note(self, folder: Path, key: str) -> None:
        """Write beside the export, whose key is given, what it may replace and which exports before it are kept."""
        last = self.decided.last
        before = [last, *self._kept()] if last and last == self.decided.exported else self._kept()
        kept = [each for each in dict.fromkeys(before) if each != key]
        note = ExportNote(exported=now(), replaces=last if last != key else None, kept=tuple(kept[:KEPT]))
        write_text(folder / EXPORT_NOTE, note.model_dump_json(indent=2) + "\n")
        for each in kept[KEPT:]:
            if each not in self.decided.keys:
                (self.store.root / upload_file(each)).unlink(missing_ok=True)

    def _kept(self) -> tuple[str, ...]:
        """The keys of the exports that are kept so far."""
        path = self.store.task(self.task) / EXPORT_NOTE
        try:
            return parse_note(path.read_bytes(), str(path)).kept
        except (MosaError, OSError):
            return ()


def _exported(store: StoreLayout, task: str) -> Decision:
    """What holds for a task about which nothing was decided."""
    path = store.task(task) / RECORD
    if not path.is_file():
        return Decision(current=None)
    key = Archive(path.read_bytes(), b"").key
    return _described(store, task, Decision(current=key, exported=key))


def _described(store: StoreLayout, task: str, decided: Decision) -> Decision:
    """Describe the version that is served, if an earlier release did not; one that is damaged stays unknown."""
    key, path = decided.last, store.task(task) / RECORD
    if key is None or decided.find(key):
        return decided
    try:
        content = path.read_bytes() if path.is_file() else b""
        if Archive(content, b"").key != key:
            upload = store.root / upload_file(key)
            content = Archive.unpack(upload.read_bytes(), sys.maxsize).record
        record = parse_record(content, str(path))
    except (MosaError, OSError):
        return decided
    return decided.keeping(KeptVersion.of(key, record, "export" if key == decided.exported else "upload", None))
