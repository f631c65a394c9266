"""The results of a comparison: means, standard deviations, and paired differences from the dense adapter."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.intervals import mean_interval
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.result_plots import draw_comparison
from training.result_rows import Result, Subject, accuracies, chosen, methods_of, subjects

REFERENCE = "adapter"
"""The method that others are compared with: the dense adapter."""


def differences(results: Sequence[Result], subject: Subject, method: str) -> list[float]:
    """Test accuracy minus the dense adapter's, seed by seed. A probe's single run is compared with every seed."""
    reference, values = accuracies(results, subject, REFERENCE), accuracies(results, subject, method)
    if len(values) == 1:
        values = values * len(reference)
    return [value - other for value, other in zip(values, reference, strict=True)]


def tables(results: Sequence[Result]) -> str:
    """Two Markdown tables: accuracies by task and method, and paired differences in percentage points."""
    compared, methods = subjects(results), methods_of(results)
    rows = []
    for subject in compared:
        for method in methods:
            values = accuracies(results, subject, method)
            if not values:  # An earlier comparison has no run of it.
                continue
            row = chosen(results, subject, method)[0]
            spread = f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else "-"
            mean = f"{np.mean(values):.4f}"
            rows.append((subject, method, row.setting, f"{row.parameters:,}", len(values), mean, spread))
    parts = [table(("task", "method", "setting", "parameters", "seeds", "test accuracy", "sd"), rows)]
    others = [method for method in methods if method != REFERENCE]
    if REFERENCE in methods and others:
        parts.append(f"Points of test accuracy above `{REFERENCE}`, paired by seed, with 95 % intervals:")
        points = [[subject, *(_points(differences(results, subject, m)) for m in others)] for subject in compared]
        if len(compared) > 1:
            means = [np.mean([differences(results, subject, m) for subject in compared], axis=0) for m in others]
            points.append(["mean of the tasks", *(_points(mean.tolist()) for mean in means)])
        parts.append(table(("task", *others), points))
    return "\n\n".join(parts)


def _points(values: Sequence[float]) -> str:
    return f"{mean_interval([100 * value for value in values]):+z.2f}"


def write_comparison(out: Path, results: Sequence[Result]) -> None:
    """Write `compare.csv`, `compare.md` and the plots."""
    columns = [field.name for field in dataclasses.fields(Result)]
    write_csv(out / "compare.csv", columns, map(dataclasses.astuple, results))
    head = provenance("training.compare")
    note = (
        "`adapter` is the dense adapter. Settings are relative to what suits the backbone (`x2` is twice its learning\n"
        "rate or scale) and were chosen on validation with seed 0; the test set was read after that. `compare.csv`\n"
        "lists every trial. " + over(results)
    )
    pictures = "\n\n".join(f"![]({file})" for file in draw_comparison(out, results))
    write_text(out / "compare.md", f"# Methods compared\n\n{head}\n\n{tables(results)}\n\n{note}\n\n{pictures}\n")


def over(results: Sequence[Result]) -> str:
    """What the intervals tell, in words."""
    if any(result.shots is not None for result in results):
        return (
            "With some images per class every seed draws its own training images: the intervals\n"
            "show how both the draw and tuning vary, on one test set."
        )
    return (
        "The intervals are over seeds on one split: they show how tuning\nvaries, not how the test images were drawn."
    )
