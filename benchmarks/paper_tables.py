"""The tables of `benchmarks.paper`: what was measured here beside what others published."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from benchmarks.paper_runs import BACKBONE, Row, Run
from mosa_deploy.bundles.adapter_config import PROBES
from mosa_deploy.utils.markdown import table
from training.tasks import BENCHMARKS
from training.tasks.benchmark import Benchmark
from training.tasks.catalogue import GROUPS, NO_FIGURE
from training.tasks.published import PUBLISHED, SOURCES
from training.tasks.vtab import NATURAL, SPECIALISED, STRUCTURED

NOT_MEASURED = "not measured"

Column = tuple[str, str]
"""(recipe, method) of runs."""


def tables(groups: Sequence[str], columns: Sequence[Column], rows: Sequence[Row], seeds: int) -> str:
    """One table per group, as Markdown."""
    return "\n\n".join(part for group in groups for part in _group(group, columns, rows, seeds))


def _group(group: str, columns: Sequence[Column], rows: Sequence[Row], seeds: int) -> Iterable[str]:
    tasks = [task for task in BENCHMARKS if task.group == group]
    methods = list(dict.fromkeys(method for task in tasks for method in PUBLISHED.get(task.name, ())))
    head = ["task", *methods, *(f"**{method}, recipe {recipe}**" for recipe, method in columns)]
    cells = [
        [task.name.partition("/")[2], *(published(task, method) for method in methods)]
        + [measured(task, column, rows, seeds) for column in columns]
        for task in tasks
    ]
    for name, part in parts(group, tasks).items():
        means = [mean([PUBLISHED.get(task.name, {}).get(method) for task in part]) for method in methods]
        own = [mean([figure(task, column, rows, seeds) for task in part]) for column in columns]
        cells.append([name, *(value or "" for value in means), *(value or NOT_MEASURED for value in own)])
    yield f"## {group}: {GROUPS[group]}"
    source = SOURCES.get(group)
    said = f"{source.name}, {source.table}; {source.protocol}" if source else NO_FIGURE
    yield f"Test accuracy in percent. Published: {said}."
    yield f"In bold: measured here, mean ± standard deviation of {seeds} seeds."
    yield table(head, cells, align="l" + "r" * (len(head) - 1))
    if found := dict.fromkeys(
        text for row in rows for task in tasks if row.task == task.name for text in odd(task, row)
    ):
        yield f"These figures do not stand beside published ones: {'; '.join(found)}."


def odd(task: Benchmark, row: Row) -> Iterator[str]:
    """In what a run is not one of the tables: a text for each difference."""
    run, name = Run(task, row.recipe, row.method, row.seed), task.name.partition("/")[2]
    if row.train != run.train:
        yield f"{name} was tuned on {row.train:,} images instead of {run.train:,}"
    if row.method not in PROBES and row.epochs != run.settings.epochs:
        yield f"{name} was tuned for {row.epochs} epochs instead of {run.settings.epochs}"
    if row.backbone != BACKBONE:
        yield f"{name} was tuned on {row.backbone}"


def parts(group: str, tasks: Sequence[Benchmark]) -> dict[str, Sequence[Benchmark]]:
    """Name of a mean -> the tasks that it is over."""
    if group != "vtab":
        return {"mean": tasks}
    return {"natural": NATURAL, "specialised": SPECIALISED, "structured": STRUCTURED, "mean of 19": tasks}


def published(task: Benchmark, method: str) -> str:
    """A published accuracy; empty if none was verified."""
    value = PUBLISHED.get(task.name, {}).get(method)
    return "" if value is None else f"{value:.1f}"


def values(task: Benchmark, column: Column, rows: Iterable[Row]) -> list[float]:
    """The test accuracies of a task's runs, in percent."""
    return [100 * row.test for row in rows if (row.task, row.recipe, row.method) == (task.name, *column)]


def figure(task: Benchmark, column: Column, rows: Iterable[Row], seeds: int) -> float | None:
    """The mean over the seeds; None if one of them was not run."""
    found = values(task, column, rows)
    return float(np.mean(found)) if len(found) >= seeds else None


def measured(task: Benchmark, column: Column, rows: Iterable[Row], seeds: int) -> str:
    """What was measured of a task: `95.8 ± 0.2`, or how many of the seeds there are."""
    found = values(task, column, rows)
    if not found:
        return NOT_MEASURED
    spread = f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
    few = f" ({len(found)} of {seeds} seeds)" if len(found) < seeds else ""
    return f"{np.mean(found):.1f}{spread}{few}"


def mean(figures: Sequence[float | None]) -> str | None:
    """The mean of figures; None if one is missing."""
    known = [value for value in figures if value is not None]
    return f"{np.mean(known):.2f}" if len(known) == len(figures) and known else None
