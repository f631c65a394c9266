"""The results of a comparison, run by run: as `compare.csv` holds them, and how they are looked up."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from mosa_deploy.errors import DataError


class Subject(NamedTuple):
    """What methods are compared on: a task, with all of its training images or some of each class."""

    task: str
    shots: int | None

    def __str__(self) -> str:
        return self.task if self.shots is None else f"{self.task}, {self.shots} per class"


@dataclass(frozen=True)
class Result:
    """The accuracies of one run. `test` is None for a trial that was not chosen."""

    task: str
    method: str
    setting: str
    seed: int
    parameters: int
    validation: float
    test: float | None
    shots: int | None = None
    """Training images of each class; None if all were used."""

    @property
    def subject(self) -> Subject:
        """What it was run on."""
        return Subject(self.task, self.shots)

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """Read a line of a `compare.csv`. Those of earlier releases have no column `shots`.

        Raises:
            KeyError: a column is missing.
            ValueError: the line is cut short or damaged.
        """
        shots, test = row.get("shots", ""), row["test"]
        if None in row or None in row.values():
            raise ValueError("another number of columns than the first line")
        return cls(
            task=row["task"],
            method=row["method"],
            setting=row["setting"],
            seed=int(row["seed"]),
            parameters=int(row["parameters"]),
            validation=float(row["validation"]),
            test=float(test) if test else None,
            shots=int(shots) if shots else None,
        )


def subjects(results: Sequence[Result]) -> list[Subject]:
    """What the methods were compared on, in the order of the runs."""
    return list(dict.fromkeys(result.subject for result in results))


def methods_of(results: Sequence[Result]) -> list[str]:
    """The methods, in the order of the runs."""
    return list(dict.fromkeys(result.method for result in results))


def chosen(results: Sequence[Result], subject: Subject, method: str) -> list[Result]:
    """The tested runs of a method, in the order of the seeds."""
    found = [r for r in results if (r.subject, r.method) == (subject, method) and r.test is not None]
    return sorted(found, key=lambda result: result.seed)


def accuracies(results: Sequence[Result], subject: Subject, method: str) -> list[float]:
    """Test accuracies of a method, in the order of the seeds."""
    return [result.test for result in chosen(results, subject, method) if result.test is not None]


def read_results(path: Path) -> list[Result]:
    """The results in the `compare.csv` of an earlier comparison.

    Raises:
        DataError: the file cannot be read, is not a `compare.csv`, or has a line that was cut short.
    """
    try:
        text = path.read_text()
        rows = list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"--beside {path} cannot be read ({type(error).__name__}): give a compare.csv") from None
    results: list[Result] = []
    for line, row in enumerate(rows, start=2):
        try:
            results.append(Result.parse(row))
        except KeyError as error:
            raise DataError(f"--beside {path} has no column {error}: give a compare.csv") from None
        except (TypeError, ValueError):
            raise DataError(_cut_short(path, line)) from None
    if not text.endswith("\n"):
        raise DataError(_cut_short(path, len(rows) + 1))  # Its last number may have lost digits.
    return results


def _cut_short(path: Path, line: int) -> str:
    return (
        f"--beside {path}: line {line} is cut short or damaged: delete it, or run that comparison again, which writes"
        " the file anew"
    )


def add_earlier(results: Sequence[Result], earlier: Sequence[Result]) -> list[Result]:
    """Prepend the earlier results of the same tasks, for methods that were not run now."""
    own = {(result.subject, result.method) for result in results}
    here = set(subjects(results))
    return [*[r for r in earlier if r.subject in here and (r.subject, r.method) not in own], *results]
