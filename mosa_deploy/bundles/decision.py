"""What was decided about a task of a store, and the rule for a version that would take the place of the served one.

`decisions/<task>@<revision>.json` is written by the service, `tasks/<task>/export.json` by `mosa export`: it says
which version the export may replace. Both sides follow one rule: other classes, and an export in place of an uploaded
version, need consent.
"""

import json
from datetime import UTC, datetime
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from mosa_deploy.bundles.answers import HasClasses
from mosa_deploy.bundles.format_version import Fields, FileFormat
from mosa_deploy.bundles.record import Record
from mosa_deploy.bundles.store_layout import DECISIONS, EXPORT_NOTE
from mosa_deploy.errors import StoreError

ChosenLane = Literal["shared", "folded"]
"""The lanes between which an upload may choose; what cannot be folded is served unfolded."""

Source = Literal["export", "upload"]

File = TypeVar("File", bound=BaseModel)

ONE_INSTEAD = "one class per image instead of several labels"

NAMED = 5
"""The largest number of class names that a difference lists."""


def _without_versions(fields: Fields) -> Fields:
    return {**fields, "versions": []}


def _with_one_class(fields: Fields) -> Fields:
    """Version 3 says which versions answer with several labels per image; before it there were none."""
    return fields


DECISION_FORMAT = FileFormat(
    f"{DECISIONS}/<task>@<revision>.json",
    StoreError,
    remedy="remove it, and upload the task again",
    migrations=(_without_versions, _with_one_class),
)
NOTE_FORMAT = FileFormat(EXPORT_NOTE, StoreError, remedy="export the task again")


class KeptVersion(BaseModel):
    """A version of a task that the store keeps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """sha256 of its record's bytes."""
    digest: str
    """sha256 of its tensors; every answer states it."""
    classes: tuple[str, ...]
    multi_label: bool = False
    """Whether it answers with several labels per image."""
    accuracy: float | None = None
    """On the validation images of its tuning, if the record says it."""
    source: Source
    added: datetime | None = None
    """When it came to the store; None if the release of that time did not note it."""

    @classmethod
    def of(cls, key: str, record: Record, source: Source, added: datetime | None) -> "KeptVersion":
        """Describe a version by its record."""
        return cls(
            key=key,
            digest=record.sha256,
            classes=record.classes,
            multi_label=record.multi_label,
            accuracy=record.metrics.get("validation_accuracy"),
            source=source,
            added=added,
        )


class Decision(BaseModel):
    """`decisions/<task>@<revision>.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = DECISION_FORMAT.newest
    current: str | None
    """Key of the version that is served; None after a removal."""
    previous: str | None = None
    """Key of the version that a rollback returns to."""
    exported: str | None = None
    """Key of the exported version when a version was last chosen."""
    pinned: bool = False
    lane: ChosenLane | None = None
    since: datetime | None = None
    """When the current version was chosen; None if the release of that time did not note it."""
    versions: tuple[KeptVersion, ...] = ()
    """The versions that are kept, the newest first."""

    @property
    def last(self) -> str | None:
        """Key of the version that is served or, after a removal, was served last."""
        return self.current or self.previous

    @property
    def keys(self) -> set[str]:
        """The keys of all versions that are kept."""
        return {version.key for version in self.versions} | {key for key in (self.current, self.previous) if key}

    def find(self, key: str | None) -> KeptVersion | None:
        """A version that is kept, by its key."""
        return next((version for version in self.versions if version.key == key), None)

    def keeping(self, version: KeptVersion, limit: int | None = None) -> "Decision":
        """This decision with one more version; of more than `limit` the oldest go, but not those that it names."""
        kept = [version, *(other for other in self.versions if other.key != version.key)]
        named = {self.current, self.previous, version.key}
        room = len(kept) if limit is None else limit - sum(other.key in named for other in kept)
        versions = []
        for other in kept:
            room -= other.key not in named
            if other.key in named or room >= 0:
                versions.append(other)
        return self.model_copy(update={"versions": tuple(versions)})


class ExportNote(BaseModel):
    """`tasks/<task>/export.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = NOTE_FORMAT.newest
    exported: datetime
    replaces: str | None = None
    """Key of the version that was served when this was exported, and that it may replace."""
    kept: tuple[str, ...] = ()
    """Keys of exports that were replaced and are kept among the uploads, the newest first."""


def parse_note(content: bytes, where: str) -> ExportNote:
    """Check the bytes of an `export.json`; errors call it `where`.

    Raises:
        StoreError: it is damaged, or was written by a newer release.
    """
    return _parse(ExportNote, NOTE_FORMAT, content, where)


def parse_decision(content: bytes, where: str) -> Decision:
    """Check the bytes of a decision; errors call it `where`.

    Raises:
        StoreError: it is damaged, or was written by a newer release.
    """
    return _parse(Decision, DECISION_FORMAT, content, where)


def _parse(kind: type[File], form: FileFormat, content: bytes, where: str) -> File:
    try:
        return kind.model_validate(form.upgrade(json.loads(content), where))
    except (ValueError, AttributeError, RecursionError):
        raise StoreError(f"{where} is damaged: {form.remedy}") from None


def now() -> datetime:
    """The time, in whole seconds of UTC."""
    return datetime.now(UTC).replace(microsecond=0)


def objections(decided: Decision, version: HasClasses) -> tuple[str | None, str | None]:
    """What speaks against an export of this version: the served one was uploaded, it has other classes."""
    last = decided.find(decided.last)
    uploaded = decided.current is not None and decided.current != decided.exported
    if last is not None:
        uploaded = decided.current is not None and last.source == "upload"
    other = class_changes(last, version) if last else None
    return "an uploaded version is served" if uploaded else None, f"it has other classes ({other})" if other else None


def class_changes(before: HasClasses, after: HasClasses) -> str | None:
    """How the classes of two versions differ, or the way they are answered, in words; None if they are the same."""
    if before.classes == after.classes and before.multi_label == after.multi_label:
        return None
    parts = []
    if before.multi_label != after.multi_label:
        parts = ["several labels per image instead of one class" if after.multi_label else ONE_INSTEAD]
    new = [name for name in after.classes if name not in set(before.classes)]
    gone = [name for name in before.classes if name not in set(after.classes)]
    parts += [f"{verb} {_listed(names)}" for verb, names in (("new:", new), ("gone:", gone)) if names]
    return "; ".join(parts) or "the same in another order"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
