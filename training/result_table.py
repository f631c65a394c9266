"""The results of a comparison: means, standard deviations, and paired differences from the dense adapter."""

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import NullFormatter

from mosa_deploy.errors import DataError
from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.intervals import mean_interval
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.plots import drawn, quiet

REFERENCE = "adapter"
"""The method that others are compared with: the dense adapter."""


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


def accuracies(results: Sequence[Result], task: str, method: str) -> list[float]:
    """Test accuracies of a method on a task, in the order of the seeds."""
    chosen = [r for r in results if (r.task, r.method) == (task, method) and r.test is not None]
    return [r.test for r in sorted(chosen, key=lambda r: r.seed) if r.test is not None]


def differences(results: Sequence[Result], task: str, method: str) -> list[float]:
    """Test accuracy minus the dense adapter's, seed by seed. The single run of `linear` is compared with every seed."""
    reference, values = accuracies(results, task, REFERENCE), accuracies(results, task, method)
    if len(values) == 1:
        values = values * len(reference)
    return [value - other for value, other in zip(values, reference, strict=True)]


def tables(results: Sequence[Result]) -> str:
    """Two Markdown tables: accuracies by task and method, and paired differences in percentage points."""
    tasks, methods = list(dict.fromkeys(r.task for r in results)), list(dict.fromkeys(r.method for r in results))
    rows = []
    for task in tasks:
        for method in methods:
            values = accuracies(results, task, method)
            row = next(r for r in results if (r.task, r.method) == (task, method) and r.test is not None)
            spread = f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else "-"
            mean = f"{np.mean(values):.4f}"
            rows.append((task, method, row.setting, f"{row.parameters:,}", len(values), mean, spread))
    parts = [table(("task", "method", "setting", "parameters", "seeds", "test accuracy", "sd"), rows)]
    others = [method for method in methods if method != REFERENCE]
    if REFERENCE in methods and others:
        parts.append(f"Points of test accuracy above `{REFERENCE}`, paired by seed, with 95 % intervals:")
        points = [[task, *(_points(differences(results, task, m)) for m in others)] for task in tasks]
        if len(tasks) > 1:
            means = [np.mean([differences(results, task, m) for task in tasks], axis=0).tolist() for m in others]
            points.append(["mean of the tasks", *map(_points, means)])
        parts.append(table(("task", *others), points))
    return "\n\n".join(parts)


def _points(values: Sequence[float]) -> str:
    # Adding 0.0 turns -0.0 into 0.0.
    mean, low, high = (round(100 * value, 2) + 0.0 for value in mean_interval(values))
    return f"{mean:+.2f}" if np.isnan(low) else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def read_results(path: Path) -> list[Result]:
    """The results in the `compare.csv` of an earlier comparison.

    Raises:
        DataError: the file cannot be read, or is not a `compare.csv`.
    """
    try:
        with path.open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        return [
            Result(
                task=row["task"],
                method=row["method"],
                setting=row["setting"],
                seed=int(row["seed"]),
                parameters=int(row["parameters"]),
                validation=float(row["validation"]),
                test=float(row["test"]) if row["test"] else None,
            )
            for row in rows
        ]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"--beside {path} cannot be read ({type(error).__name__}): give a compare.csv") from None


def add_earlier(results: Sequence[Result], earlier: Sequence[Result]) -> list[Result]:
    """Prepend the earlier results of the same tasks, for methods that were not run now."""
    own = {(result.task, result.method) for result in results}
    tasks = {result.task for result in results}
    return [*[r for r in earlier if r.task in tasks and (r.task, r.method) not in own], *results]


def write_comparison(out: Path, results: Sequence[Result]) -> None:
    """Write `compare.csv`, `compare.md` and `compare.png`."""
    columns = [field.name for field in dataclasses.fields(Result)]
    write_csv(out / "compare.csv", columns, map(dataclasses.astuple, results))
    head = provenance("training.compare")
    note = (
        "`adapter` is the dense adapter. Settings are relative to the task's preset (`x2` is twice its) and were\n"
        "chosen on validation with seed 0; the test set was read after that. `compare.csv` lists every trial. The\n"
        "intervals are over seeds on one split: they show how tuning varies, not how the test images were drawn."
    )
    write_text(out / "compare.md", f"# Methods compared\n\n{head}\n\n{tables(results)}\n\n{note}\n\n![](compare.png)\n")
    draw(out / "compare.png", results)


def draw(path: Path, results: Sequence[Result]) -> None:
    """Plot test accuracy and its standard deviation over the seeds against trained parameters, one panel per task."""
    tasks, methods = list(dict.fromkeys(r.task for r in results)), list(dict.fromkeys(r.method for r in results))
    with drawn(path, 2.9 * len(tasks) + 1, 3.2) as figure:
        axes = figure.subplots(1, len(tasks), squeeze=False)[0]
        for each, task in zip(axes, tasks, strict=True):
            for color, method in enumerate(methods):
                values = [100 * value for value in accuracies(results, task, method)]
                parameters = next(r.parameters for r in results if (r.task, r.method) == (task, method))
                spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                mark = {"fmt": "o", "color": f"C{color}", "capsize": 4, "label": method}
                each.errorbar(parameters, np.mean(values), yerr=spread, **mark)
            sizes = [r.parameters for r in results if r.task == task]
            limits = 10 ** np.floor(np.log10(min(sizes))), 10 ** (np.floor(np.log10(max(sizes))) + 1)
            each.set(title=task, xscale="log", xlabel="trained parameters", xlim=limits)
            each.xaxis.set_minor_formatter(NullFormatter())
            each.margins(y=0.15)
            quiet(each)
        axes[0].set_ylabel("test accuracy (%)")
        axes[-1].legend(frameon=False)
