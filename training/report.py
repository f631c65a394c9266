"""`report.md`: what was tuned, its metrics on validation, and which classes it confuses."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.preprocess import probabilities
from mosa_deploy.bundles.probe_features import Features
from mosa_deploy.bundles.record import Backbone, Record
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from training import plots
from training.events import closing, write_events
from training.loop import Row
from training.method_settings import ADAPTER_ONLY, SPLIT_ONLY
from training.recipe import Recipe
from training.scores import classification_metrics, confusions, early_ending, kept

REPORT = "report.md"
PICTURES = CURVES, CONFUSION, RELIABILITY = "curves.png", "confusion.png", "calibration.png"

WARNING = "warning: "
"""How a remark begins that casts doubt on the result."""

FEATURES: dict[Features, str] = {
    "cls": "the frozen features",
    "cls+mean": "the class token and the mean of the patches",
    "blocks": "the class tokens of the last blocks and the mean of the patches",
}
"""The features of a linear probe in words."""

PROBE_FIELDS: dict[str, tuple[str, ...]] = {
    "linear": ("balance", "select"),
    "attentive": ("epochs", "batch_size", "lr", "weight_decay", "warmup_epochs", "balance", "select", "loss"),
}
"""The settings of a recipe that a probe uses."""

OF_ADAPTERS = ("dropout", "style", "targets", "groups", *ADAPTER_ONLY, *SPLIT_ONLY)
"""The settings that SSF, and methods which tune the backbone itself, do not use. Other methods use all."""

OF_SSF = ("style", "blocks")
"""The settings of an adapter that SSF uses."""

VALIDATION = "## Validation\n"
"""The heading of the part with the metrics."""

WORST = 10
"""The largest number of confusions that the report lists."""


def write_report(
    out: Path,
    record: Record,
    recipe: Recipe,
    logits: Tensor,
    labels: Tensor,
    rows: list[Row],
    tested: bool = True,
    remarks: Sequence[str] = (),
) -> None:
    """Write the report and its pictures, and add both to TensorBoard's events.

    `logits` (N, K) and `labels` (N,) are those of the validation images, before division by the record's temperature.
    `rows` is the history: one row per epoch, or per C for the linear probe.
    `tested` says whether the images have a test set. `remarks` are what the user should know about the images and the
    result, one line each.
    """
    before, after = (probabilities(logits.numpy(), temperature) for temperature in (1.0, record.temperature))
    true, predicted = labels.numpy(), logits.argmax(1).numpy()
    matrix = confusion_matrix(true, predicted, labels=range(len(record.classes)))
    title = f"{record.task}, {record.method} on {record.backbone.name}"
    plots.draw_curves(out / CURVES, rows, title, recipe.select)
    of = f"{record.task}, {len(labels)} validation images"
    plots.draw_confusion(out / CONFUSION, matrix, record.classes, of)
    plots.draw_calibration(out / RELIABILITY, before, after, labels, of)
    measured = classification_metrics(before, labels), classification_metrics(after, labels)
    axis = plots.axis_name(next(iter(rows[0])))
    text = f"""# {title}

{table(("what", "how"), settings(record, recipe, rows).items())}
{remarks_section(remarks)}
{VALIDATION}
{metrics_table(*measured, record.temperature)}

Measured on the {len(labels)} images that also chose the {axis} and the temperature: expect slightly worse results on
new images. {test_section(out, tested, multi_label=False)}

## Largest confusions

{confusions_list(matrix, record.classes)}

## Classes

{classes_table(true, predicted, record.classes)}
"""
    pictures = "\n\n".join(f"![{Path(file).stem}]({file})" for file in PICTURES)
    write_text(out / REPORT, f"{text}\n## Pictures\n\n{pictures}\n")
    chosen = {"method": record.method, "seed": record.seed, **recipe_fields(record, recipe)}
    write_events(out, rows, closing(text, [out / file for file in PICTURES], chosen, measured[1]))


def remarks_section(remarks: Sequence[str]) -> str:
    """What the user should know, warnings in bold; nothing if there is nothing."""
    lines = [f"- {remark}".replace(f"- {WARNING}", "- **Warning:** ") for remark in remarks]
    return "\n".join(["", "## Worth knowing", "", *lines, ""]) if lines else ""


def evaluate_command(out: Path) -> str:
    """The command that measures the run in a folder on its test set."""
    return f"mosa evaluate --bundle {out.name if out.is_absolute() else out.as_posix()}"


def test_section(out: Path, tested: bool, multi_label: bool) -> str:
    """How to measure the run on its test set, or that there is none."""
    if tested:
        so_far = "Nothing was chosen on the test set, and no model has answered it; this command does:"
        return f"{so_far}\n\n```sh\n{evaluate_command(out)}\n```"
    apart, where = "in test/<class>/<file>", "--data-dir FOLDER"
    if multi_label:
        apart, where = "in a table of their own with `test` in a column `split`", "--labels TABLE"
    return (
        "**There is no test set**, so nothing says how well the task does on images that chose nothing. Keep some"
        f" images of each class apart, {apart}, and run:\n\n```sh\n{evaluate_command(out)} {where}\n```"
    )


def settings(record: Record, recipe: Recipe, rows: list[Row]) -> dict[str, str]:
    """The first table: what was tuned, how, and with which versions."""
    adapter = adapter_fields(record)
    used = recipe_fields(record, recipe)
    schedule = listing({name: value for name, value in used.items() if name not in {*adapter, "backbone"}})
    if record.method == "linear":
        schedule = f"logistic regression on {FEATURES[record.features]}, {schedule}"
    x, best = next(iter(rows[0])), rows[kept(rows, recipe.select)]
    early = early_ending(rows, recipe)
    return {
        "task": f"{record.task}, {len(record.classes)} {'labels' if record.multi_label else 'classes'} of"
        f" {record.dataset}",
        "method": record.method,
        "backbone": backbone_line(record.backbone),
        "input": f"{record.preprocess.size[0]} x {record.preprocess.size[1]} pixels",
        "adapter": listing(adapter) or "none",
        "parameters": f"{record.metrics['parameters']:,.0f}",
        "recipe": schedule,
        "kept": "; ".join(filter(None, (f"{plots.axis_name(x)} {best[x]:g}, the best of {len(rows)}", early))),
        "seed": f"{record.seed}",
        "versions": listing(record.versions),
        "commit": record.git_commit or "unknown",
    }


def adapter_fields(record: Record) -> dict[str, Any]:
    """Name -> value of each setting of the adapter that its style uses; none without an adapter."""
    given = fields(record.adapter) if record.adapter else {}
    return {name: value for name, value in given.items() if record.method != "ssf" or name in OF_SSF}


def recipe_fields(record: Record, recipe: Recipe) -> dict[str, Any]:
    """Name -> value of each setting of the recipe that the method uses."""
    given = fields(recipe)
    used = PROBE_FIELDS.get(record.method, given)
    unused = OF_ADAPTERS if record.tunes_backbone or record.method == "ssf" else ()
    return {name: given[name] for name in used if name not in unused}


def backbone_line(backbone: Backbone) -> str:
    """What a backbone is, and which weights it had."""
    about = "" if backbone.about is None else f" ({backbone.about})"
    return f"{backbone.name}{about}, {backbone.source}, sha256 {backbone.sha256[:12]}"


def fields(settings: Recipe | AdapterConfig) -> dict[str, Any]:
    """Name -> value of each setting; a tuple becomes one text."""
    return {
        name: " ".join(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(settings).items()
    }


def metrics_table(before: Mapping[str, float], after: Mapping[str, float], temperature: float) -> str:
    """The metrics of validation before and after temperature scaling."""
    names = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy (mean over the classes)",
        "macro_f1": "macro-F1 (mean over the classes)",
        "nll": "negative log likelihood (nats)",
        "ece": "expected calibration error",
    }
    rows = [(text, f"{before[name]:.4f}", f"{after[name]:.4f}") for name, text in names.items()]
    return table(("", "before the temperature", f"at temperature {temperature:.3f}"), rows, align="lrr")


def confusions_list(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    """The most frequent confusions in words, most frequent first."""
    worst, names = confusions(matrix, WORST), [" ".join(name.split()) for name in classes]
    lines = [
        f"- `{names[i]}` taken for `{names[j]}`: {n} of {matrix[i].sum()} ({n / matrix[i].sum():.0%})"
        for i, j, n in worst
    ]
    return "\n".join(lines) or "None: every image of validation is given its class."


def classes_table(true: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Number of images, precision, recall and F1 of each class; a dash where the metric is undefined."""
    measured = precision_recall_fscore_support(true, predicted, labels=range(len(classes)), zero_division=np.nan)
    rows = [
        (f"`{name}`", str(images), *("-" if np.isnan(value) else f"{value:.3f}" for value in values))
        for name, *values, images in zip(classes, *measured, strict=True)
    ]
    return table(("class", "images", "precision", "recall", "F1"), rows, align="lrrrr")


def listing(settings: Mapping[str, object]) -> str:
    """`name value, name value`, without settings that are None or empty."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if value not in (None, ""))
