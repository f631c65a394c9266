"""The folder of a run of `mosa score`: one Parquet file of answers per shard, and what the run is made of.

    <shard>.parquet     file, task, class, score, bundle: one row per answer
    _run.json           the manifest: another run is not mixed with this one
    _unreadable.csv     the images that have no answers, and why

A shard's file is renamed into its place when it is complete, and holds a note of what it was made from. So a run that
was killed goes on with the shards that have none. Readers of Parquet folders pass by names that begin with `_` or `.`.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from mosa_deploy.bundles.answers import ranked_rows
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.record import Record
from mosa_deploy.errors import StoreError, WriteError
from mosa_deploy.utils.files import replacing, write_csv, write_text
from serving.score_decode import Fault
from serving.score_shards import Shard

MANIFEST, UNREADABLE, LOCK = "_run.json", "_unreadable.csv", ".lock"
NOTE = b"mosa_deploy.score"
"""The key of the note in a Parquet file's metadata."""

SCORES = 1 << 20
"""Probabilities that are held before they become rows."""

ROW_GROUP = 1 << 16
"""Rows that are held before they are written."""

SCHEMA = pyarrow.schema(
    [
        ("file", pyarrow.string()),
        ("task", pyarrow.string()),
        ("class", pyarrow.string()),
        ("score", pyarrow.float32()),
        ("bundle", pyarrow.string()),
    ]
)


class TaskPlan(BaseModel):
    """What answers for a task in a run: a version of it, its lane and its runtime."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str
    lane: str
    runs: str
    """What runs its graph, and in which precision."""


class Manifest(BaseModel):
    """`_run.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # A run goes on with the release that began it, so no version is migrated.
    format_version: Literal[1] = 1
    mosa_deploy: str
    store: str
    images: str
    column: str
    shard_images: int
    top_k: int | None
    tasks: dict[str, TaskPlan]

    def differences(self, before: "Manifest") -> list[str]:
        """What is otherwise than in another run. The same tasks may lie in another store."""
        found = [
            f"{name} was {old!r} and is {new!r}"
            for name in ("mosa_deploy", "images", "column", "shard_images", "top_k")
            if (old := getattr(before, name)) != (new := getattr(self, name))
        ]
        for name in sorted(before.tasks.keys() | self.tasks.keys()):
            if (was := before.tasks.get(name)) != (now := self.tasks.get(name)):
                found.append(f"task '{name}' was {_shown(was)} and is {_shown(now)}")
        return found


def _shown(plan: TaskPlan | None) -> str:
    return f"{plan.bundle[:12]}, {plan.lane} by {plan.runs}" if plan else "not asked"


class Note(BaseModel):
    """What a shard's file says of its making."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_from: str
    images: int
    unreadable: tuple[Fault, ...]


class Held(NamedTuple):
    """Answers of a task that are no rows yet."""

    record: Record
    names: list[str]
    scores: list[Array]


class Answers:
    """Writes the answers of one shard. Those of many images become rows at once, of one task after the other."""

    def __init__(self, writer: Any, top_k: int | None) -> None:
        self.writer, self.top_k = writer, top_k
        self.images = 0
        self.unreadable: list[Fault] = []
        self._held: dict[str, Held] = {}
        self._batches: list[Any] = []
        self._scores = self._rows = 0

    def add(self, record: Record, names: Sequence[str], scores: Array) -> None:
        """The answers of a task to some images, by its probabilities (n, K)."""
        held = self._held.setdefault(record.task, Held(record, [], []))
        held.names.extend(names)
        held.scores.append(scores)
        self._scores += scores.size
        if self._scores >= SCORES:
            self._make_rows()
        if self._rows >= ROW_GROUP:
            self.flush()

    def _make_rows(self) -> None:
        """Make rows of the answers that are held; images on which a task overflows are unreadable."""
        for record, names, parts in self._held.values():
            scores = np.concatenate(parts)
            finite = np.asarray(np.isfinite(scores).all(axis=1))
            if not finite.all():
                reason = f"'{record.task}' overflows on this image: tune it again"
                self.unreadable += [(name, reason) for name, good in zip(names, finite, strict=True) if not good]
                names = [name for name, good in zip(names, finite, strict=True) if good]
            self._batches.append(rows_of(record, names, scores[finite], self.top_k))
            self._rows += self._batches[-1].num_rows
        self._held, self._scores = {}, 0

    def flush(self) -> None:
        """Write everything."""
        self._make_rows()
        if self._batches:
            self.writer.write_table(pyarrow.Table.from_batches(self._batches))
        self._batches, self._rows = [], 0


def rows_of(record: Record, names: Sequence[str], scores: Array, top_k: int | None) -> Any:
    """The rows of a task. An image that has none of several labels has one row, without class and score."""
    images, classes = ranked_rows(scores, record.thresholds, top_k or (None if record.multi_label else 1))
    if record.multi_label:
        none = np.setdiff1d(np.arange(len(names)), images)
        images, classes = np.concatenate([images, none]), np.concatenate([classes, np.full_like(none, -1)])
        order = np.argsort(images, kind="stable")
        images, classes = images[order], classes[order]
    count, missing = len(images), classes < 0
    labels = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(classes, mask=missing), pyarrow.array(record.classes, pyarrow.string())
    )
    columns = [
        pyarrow.array(names, pyarrow.string()).take(pyarrow.array(images)),
        pyarrow.repeat(pyarrow.scalar(record.task), count),
        labels.dictionary_decode(),
        pyarrow.array(scores[images, classes], pyarrow.float32(), mask=missing),
        pyarrow.repeat(pyarrow.scalar(record.sha256), count),
    ]
    return pyarrow.RecordBatch.from_arrays(columns, schema=SCHEMA)


class RunFolder:
    """The folder of a run, which one process at a time may write to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: dict[str, Note] = {}
        """File -> note of each shard that is finished."""

    @classmethod
    @contextmanager
    def locked(cls, root: Path) -> Iterator["RunFolder"]:
        """Keep other processes out, as long as this one lives.

        Raises:
            WriteError: it is a file, or another process writes to it.
        """
        if root.exists() and not root.is_dir():
            raise WriteError(f"--out {root} is a file: name a folder")
        root.mkdir(parents=True, exist_ok=True)
        with (root / LOCK).open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WriteError(f"another process writes to {root}: wait for it, or name another --out") from None
            yield cls(root)

    def claim(self, manifest: Manifest) -> None:
        """Go on with the run that this folder holds, or begin one.

        Raises:
            StoreError: it holds another run; the message says in what it differs.
        """
        path = self.root / MANIFEST
        if path.exists():
            try:
                before = Manifest.model_validate_json(path.read_bytes())
            except ValidationError:
                raise StoreError(f"{path} is damaged, or of another release: name another --out") from None
            if found := manifest.differences(before):
                raise StoreError(f"{self.root} holds another run: {'; '.join(found)}; name another --out")
        else:
            write_text(path, manifest.model_dump_json(indent=2) + "\n")
        for aside in self.root.rglob(".*.tmp"):
            aside.unlink()

    def finished(self, shard: Shard) -> bool:
        """Whether a shard has its file.

        Raises:
            StoreError: the file is no part of this run, or the shard has changed since.
        """
        path = self.root / shard.file
        if not path.exists():
            return False
        note = _read_note(path)
        if note.made_from != shard.fingerprint():
            raise StoreError(f"the images of {path} have changed since it was made: remove it, or name another --out")
        self.notes[shard.file] = note
        return True

    @contextmanager
    def writing(self, shard: Shard, top_k: int | None) -> Iterator[Answers]:
        """Write a shard's file; nothing is left of it if anything fails."""
        with (
            replacing(self.root / shard.file) as aside,
            pyarrow.parquet.ParquetWriter(aside, SCHEMA, compression="zstd") as writer,
        ):
            answers = Answers(writer, top_k)
            yield answers
            answers.flush()
            unreadable = tuple(answers.unreadable)
            note = Note(made_from=shard.fingerprint(), images=answers.images, unreadable=unreadable)
            writer.add_key_value_metadata({NOTE: note.model_dump_json().encode()})
        self.notes[shard.file] = note

    def list_unreadable(self) -> int:
        """Write the list of images without answers, and return their number."""
        faults = [fault for name in sorted(self.notes) for fault in self.notes[name].unreadable]
        write_csv(self.root / UNREADABLE, ("file", "reason"), faults)
        return len(faults)


def _read_note(path: Path) -> Note:
    try:
        return Note.model_validate_json((pyarrow.parquet.read_metadata(path).metadata or {})[NOTE])
    except (pyarrow.ArrowException, OSError, KeyError, ValidationError):
        raise StoreError(f"{path} is no file of this run: move it away, or name another --out") from None
