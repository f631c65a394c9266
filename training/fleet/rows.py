"""What came of each task of a fleet: the lines of `fleet.csv`, and how they are looked up."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from mosa_deploy.errors import DataError
from mosa_deploy.utils.files import write_csv
from training.fleet.options import TABLE
from training.fleet.stages import TUNE, FleetTask, Notes


@dataclass(frozen=True)
class Failure:
    """The stage of a task that failed, and why."""

    stage: str
    text: str


@dataclass(frozen=True)
class Row:
    """What came of a task. Texts are empty and figures None where a stage was not reached."""

    task: str
    state: str
    """`exported`, `deployed`, or which stage failed."""
    asked: str
    """The method that was asked for."""
    method: str
    """The method that it has: with `auto`, the one that was chosen."""
    backbone: str
    measure: str
    """What the two figures are: accuracy, or map for several labels per image."""
    validation: float | None
    test: float | None
    tune_seconds: float
    seconds: float
    """The time of all stages together."""
    bundle: str
    """Digest of what was exported, which every answer of the service states."""
    folder: str
    """Where that lies."""
    run: str
    log: str
    fault: str

    @classmethod
    def of(cls, task: FleetTask, failure: Failure | None) -> Self:
        """Read what the stages of a task left."""
        tuned, exported, seconds = task.tuned_record(), task.exported_record(), Notes.read(task.notes).seconds
        measure = "map" if tuned is not None and tuned.multi_label else "accuracy"
        test = json.loads(task.evaluation.read_text()) if task.evaluation.is_file() else {}
        return cls(
            task=task.name,
            state=f"{failure.stage} failed" if failure else "exported" if task.fleet.to is None else "deployed",
            asked=task.config.method,
            method="" if tuned is None else tuned.method,
            backbone="" if tuned is None else tuned.backbone.name,
            measure=measure,
            validation=None if tuned is None else tuned.metrics.get(f"validation_{measure}"),
            test=test.get(measure),
            tune_seconds=round(seconds.get(TUNE, 0.0), 1),
            seconds=round(sum(seconds.values()), 1),
            bundle="" if exported is None else exported.sha256,
            folder="" if exported is None else str(task.exported),
            run="" if tuned is None else str(task.folder),
            log=str(task.log),
            fault="" if failure is None else failure.text,
        )

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Read a line of a `fleet.csv`.

        Raises:
            KeyError: a column is missing.
            ValueError: the line is cut short or damaged.
        """
        if None in fields or None in fields.values():
            raise ValueError("another number of columns than the first line")
        texts = {field.name: fields[field.name] for field in dataclasses.fields(cls)}
        figures = {name: float(texts[name]) if texts[name] else None for name in ("validation", "test")}
        return cls(**texts | figures | {name: float(texts[name]) for name in ("tune_seconds", "seconds")})


class Beside(NamedTuple):
    """A task, and the same in an earlier fleet; one of them may be missing."""

    task: str
    old: Row | None
    new: Row | None

    @property
    def points(self) -> float | None:
        """How many percentage points better the new one is, on the test set if both have one; None if unknown."""
        if self.old is None or self.new is None or self.old.measure != self.new.measure:
            return None
        old, new = (self.old.test, self.new.test) if self.on_test else (self.old.validation, self.new.validation)
        return None if old is None or new is None else 100 * (new - old)

    @property
    def on_test(self) -> bool:
        """Whether both were evaluated on a test set."""
        return all(row is not None and row.test is not None for row in (self.old, self.new))


def put_beside(rows: Sequence[Row], earlier: Sequence[Row]) -> list[Beside]:
    """The tasks of both fleets, those of the new one first."""
    old, new = ({row.task: row for row in of} for of in (earlier, rows))
    return [Beside(name, old.get(name), new.get(name)) for name in dict.fromkeys([*new, *old])]


def write_rows(out: Path, rows: Sequence[Row]) -> None:
    """Write `fleet.csv`."""
    columns = [field.name for field in dataclasses.fields(Row)]
    write_csv(out / TABLE, columns, map(dataclasses.astuple, rows))


def read_rows(out: Path) -> list[Row]:
    """The lines of the `fleet.csv` of an earlier fleet.

    Raises:
        DataError: the file cannot be read, is no `fleet.csv`, or has a line that was cut short.
    """
    path = out / TABLE
    again = "run that fleet again, which writes it anew"
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            text = handle.read()
        if not text.endswith("\n"):
            raise ValueError("its last line is cut short")
        return [Row.parse(fields) for fields in csv.DictReader(io.StringIO(text, newline=""))]
    except KeyError as error:
        raise DataError(f"--beside {out}: {path} has no column {error}: {again}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"--beside {out}: {path} is damaged ({error}): {again}") from None
