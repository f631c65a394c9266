"""The plots of a comparison: accuracy against trained parameters, and against training images per class."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from training.plots import drawn, quiet
from training.result_rows import Result, Subject, accuracies, chosen, methods_of, subjects

COLUMNS = 4
"""The most panels beside each other."""

PARAMETERS, SHOTS = "compare.png", "compare_shots.png"


def draw_comparison(out: Path, results: Sequence[Result]) -> list[str]:
    """Draw the plots into a folder; returns the names of their files."""
    draw_parameters(out / PARAMETERS, results)
    growing = {task: sizes for task, sizes in by_shots(results).items() if len(sizes) > 1}
    if not growing:
        return [PARAMETERS]
    draw_shots(out / SHOTS, results, growing)
    return [PARAMETERS, SHOTS]


def by_shots(results: Sequence[Result]) -> dict[str, list[Subject]]:
    """Task -> what was compared with some images per class, fewest first."""
    found: dict[str, list[Subject]] = {}
    for subject in sorted((s for s in subjects(results) if s.shots is not None), key=lambda s: s.shots or 0):
        found.setdefault(subject.task, []).append(subject)
    return found


def draw_parameters(path: Path, results: Sequence[Result]) -> None:
    """Plot test accuracy and its standard deviation over the seeds against trained parameters, a panel per subject."""
    compared, sizes = subjects(results), [result.parameters for result in results]
    limits = 10 ** np.floor(np.log10(min(sizes))), 10 ** (np.floor(np.log10(max(sizes))) + 1)
    with panels(path, list(map(str, compared)), "trained parameters") as axes:
        for each, subject in zip(axes, compared, strict=True):
            for color, method in enumerate(methods_of(results)):
                runs = chosen(results, subject, method)
                draw_line(each, [runs[0].parameters] if runs else [], [subject], results, method, color)
            each.set(xscale="log", xlim=limits)
            each.xaxis.set_minor_formatter(NullFormatter())


def draw_shots(path: Path, results: Sequence[Result], growing: dict[str, list[Subject]]) -> None:
    """Plot test accuracy and its standard deviation over the seeds against images per class, a panel per task."""
    with panels(path, list(growing), "training images per class") as axes:
        for each, sizes in zip(axes, growing.values(), strict=True):
            for color, method in enumerate(methods_of(results)):
                known = [subject for subject in sizes if chosen(results, subject, method)]
                draw_line(each, [subject.shots or 0 for subject in known], known, results, method, color)
            each.set_xscale("log")
            each.xaxis.set_major_locator(FixedLocator([subject.shots or 0 for subject in sizes]))
            each.xaxis.set_major_formatter(ScalarFormatter())
            each.xaxis.set_minor_locator(NullLocator())
            each.margins(x=0.1)


def draw_line(
    axes: Axes, x: Sequence[int], compared: Sequence[Subject], results: Sequence[Result], method: str, color: int
) -> None:
    """Draw a method's mean accuracies in percent, joined by a line, with bars of their standard deviations."""
    if not x:
        return
    values = [100 * np.array(accuracies(results, subject, method)) for subject in compared]
    means, spreads = [each.mean() for each in values], [each.std(ddof=1) if len(each) > 1 else 0.0 for each in values]
    axes.errorbar(x, means, yerr=spreads, fmt="o-", color=f"C{color}", capsize=4, linewidth=1, label=method)


@contextmanager
def panels(path: Path, titles: Sequence[str], across: str) -> Iterator[list[Axes]]:
    """A panel for each title, and one legend for all; written to `path` at the end of the block."""
    columns = min(COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    with drawn(path, 2.9 * columns + 1.4, 2.9 * rows + 0.3) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        used = list(grid.flat)[: len(titles)]
        yield used
        for axes in list(grid.flat)[len(titles) :]:
            axes.remove()
        for axes, title in zip(used, titles, strict=True):
            axes.set(title=title, xlabel=across)
            axes.margins(y=0.15)
            quiet(axes)
        for row in grid:
            row[0].set_ylabel("test accuracy (%)")
        lines = [dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)) for axes in used]
        legend = {label: line for found in lines for label, line in found.items()}
        figure.legend(legend.values(), legend, frameon=False, loc="outside right center")
