"""`report.md` of a task with several labels per image: the figures on validation, and each label's threshold."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor

from mosa_deploy.bundles.answers import PerLabel, decide
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.record import Record
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from training import plots
from training.events import closing, write_events
from training.label_scores import as_targets, average_precisions, label_metrics
from training.loop import Row
from training.recipe import Recipe
from training.report import CURVES, REPORT, VALIDATION, recipe_fields, remarks_section, settings, test_section

NAMES = {
    "map": "mAP (mean over the labels)",
    "macro_f1": "macro-F1 (mean over the labels)",
    "micro_f1": "micro-F1 (over all labels together)",
    "accuracy": "accuracy (images all of whose labels are right)",
    "nll": "negative log likelihood of a label (nats)",
    "ece": "expected calibration error",
}
"""The metrics in words."""


def write_label_report(
    out: Path,
    record: Record,
    recipe: Recipe,
    logits: Tensor,
    labels: Tensor,
    rows: list[Row],
    tested: bool = True,
    remarks: Sequence[str] = (),
) -> None:
    """Write the report and its picture, and add both to TensorBoard's events; see `training.report.write_report`.

    `logits` and `labels` are (N, K), before calibration.
    """
    assert record.per_label is not None
    plain = PerLabel.uncalibrated(len(record.classes))
    before, after = (each.scores(logits.numpy()) for each in (plain, record.per_label))
    measured = (
        label_metrics(before, labels, plain.thresholds),
        label_metrics(after, labels, record.per_label.thresholds),
    )
    title = f"{record.task}, {record.method} on {record.backbone.name}"
    plots.draw_curves(out / CURVES, rows, title, recipe.select)
    axis = plots.axis_name(next(iter(rows[0])))
    text = f"""# {title}

{table(("what", "how"), settings(record, recipe, rows).items())}
{remarks_section(remarks)}
{VALIDATION}
{metrics_table(*measured)}

Measured on the {len(labels)} images that also chose the {axis}, the thresholds and the calibration: expect slightly
worse results on new images. {test_section(out, tested, multi_label=True)}

## Labels

Each label is answered from its threshold on, which has the best F1 on these images; precision, recall and F1 are there.

{labels_table(after, labels, record.classes, record.per_label.thresholds)}
"""
    write_text(out / REPORT, f"{text}\n## Pictures\n\n![{Path(CURVES).stem}]({CURVES})\n")
    chosen = {"method": record.method, "seed": record.seed, **recipe_fields(record, recipe)}
    write_events(out, rows, closing(text, [out / CURVES], chosen, measured[1]))


def metrics_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """The metrics of validation before and after calibration."""
    rows = [(text, f"{before[name]:.4f}", f"{after[name]:.4f}") for name, text in NAMES.items()]
    return table(("", "plain sigmoids from 0.5 on", "calibrated, at the thresholds"), rows, align="lrr")


def labels_table(scores: Array, labels: Tensor, classes: Sequence[str], thresholds: Sequence[float]) -> str:
    """Number of images, average precision, threshold, precision, recall and F1 of each label; a dash for no value."""
    targets, answered = as_targets(labels), decide(scores, thresholds).astype(np.int64)
    # Without a column of its own, scikit-learn would take a single label for two classes.
    measured = [
        precision_recall_fscore_support(targets[:, k], answered[:, k], labels=[1], zero_division=np.nan)
        for k in range(len(classes))
    ]
    rows = [
        (
            f"`{name}`",
            str(int(count)),
            *("-" if np.isnan(value) else f"{value:.3f}" for value in (ap, threshold, precision, recall, f1)),
        )
        for name, ap, threshold, ((precision,), (recall,), (f1,), (count,)) in zip(
            classes, average_precisions(targets, scores), thresholds, measured, strict=True
        )
    ]
    head = ("label", "images", "average precision", "threshold", "precision", "recall", "F1")
    return table(head, rows, align="lrrrrrr")
