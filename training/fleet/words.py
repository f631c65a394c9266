"""What came of a fleet in words: the cells of its tables, and what they come to."""

from collections.abc import Sequence

import numpy as np

from training.fleet.rows import Beside, Row

DIGEST = 12
"""The number of characters by which a bundle is named."""

Cells = tuple[str, ...]

HEAD: Cells = ("task", "state", "method", "validation", "test", "seconds", "bundle")
ALIGN = "lllrrrl"

HEAD_BESIDE: Cells = ("task", "test before", "now", "points", "validation before", "now", "method before", "now")
ALIGN_BESIDE = "lrrrrrll"


def cells_of(row: Row) -> Cells:
    """A line of the table."""
    return (
        row.task,
        row.state,
        method_of(row),
        figure(row.validation, row.measure),
        figure(row.test, row.measure),
        f"{row.seconds:.0f}",
        row.bundle[:DIGEST],
    )


def method_of(row: Row) -> str:
    """The method in words: `lora, chosen by auto`."""
    return f"{row.method}, chosen by auto" if row.asked == "auto" and row.method else row.method or row.asked


def figure(value: float | None, measure: str) -> str:
    """An accuracy, or a mean average precision, which is named."""
    return "-" if value is None else f"{value:.4f}" + (" mAP" if measure == "map" else "")


def cells_beside(pair: Beside) -> Cells:
    """A line of the table of two fleets."""
    rows = pair.old, pair.new
    backbones = ["-" if row is None else f"{method_of(row)} on {row.backbone}" for row in rows]
    test, validation = (
        ["-" if row is None else figure(getattr(row, name), row.measure) for row in rows]
        for name in ("test", "validation")
    )
    return (pair.task, *test, "-" if pair.points is None else f"{pair.points:+.2f}", *validation, *backbones)


def conclusion(pairs: Sequence[Beside]) -> str:
    """What the differences of two fleets come to, in words."""
    points = [pair.points for pair in pairs if pair.points is not None]
    if not points:
        return "No task has figures in both fleets."
    better, worse = sum(value > 0 for value in points), sum(value < 0 for value in points)
    on = "the test set" if all(pair.on_test for pair in pairs if pair.points is not None) else "test or validation"
    return (
        f"The mean difference is {np.mean(points):+.2f} points on {on}, over {len(points)} tasks; {better} are better"
        f" and {worse} worse, between {min(points):+.2f} and {max(points):+.2f}."
    )


def summary(rows: Sequence[Row]) -> str:
    """What came of all tasks, in words."""
    failed = sum(bool(row.fault) for row in rows)
    return f"{len(rows) - failed} of {len(rows)} tasks are done" + (f", {failed} failed" if failed else "")


def failure(row: Row) -> str:
    """A line about a task that failed."""
    return f"{row.task}: {row.state}: {row.fault}; see {row.log}"
