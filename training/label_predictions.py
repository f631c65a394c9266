"""What an evaluation leaves to look at where images have several labels: every score, and the worst mistakes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mosa_deploy.bundles.answers import Decisions, decide
from mosa_deploy.bundles.decode import Decode
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.utils.files import write_csv
from training.data import ImageSet
from training.predictions import MOST, PREDICTIONS, draw_mistakes

BETWEEN = "|"


def write_label_predictions(
    out: Path, images: ImageSet, scores: Array, classes: Sequence[str], thresholds: Sequence[float]
) -> None:
    """Write `predictions.csv`: the file, its labels, those that are answered, and the score of every label."""
    wanted, answered = images.labels.numpy() > 0, decide(scores, thresholds)
    write_csv(
        out / PREDICTIONS,
        ("file", "labels", "answers", *(f"score of {name}" for name in classes)),
        (
            (example.name, named(want, classes), named(answer, classes), *(f"{score:.6f}" for score in row))
            for example, want, answer, row in zip(images.examples, wanted, answered, scores, strict=True)
        ),
    )


def named(row: Decisions, classes: Sequence[str]) -> str:
    """The names of the labels in a row (K,): `cat|dog`."""
    return BETWEEN.join(name for name, has in zip(classes, row, strict=True) if has)


def write_label_mistakes(
    out: Path, images: ImageSet, scores: Array, classes: Sequence[str], thresholds: Sequence[float], decode: Decode
) -> int:
    """Draw `mistakes.png`, the images with the label that is farthest on the wrong side of its threshold first.

    Returns how many images have a wrong label, in all.
    """
    wanted, answered = images.labels.numpy() > 0, decide(scores, thresholds)
    by = np.where(wanted != answered, np.abs(scores - np.asarray(thresholds)), 0).max(axis=1)
    wrong = np.flatnonzero((wanted != answered).any(axis=1))
    worst = wrong[np.argsort(-by[wrong], kind="stable")].tolist()
    lines = [
        (named(answered[i], classes) or "no label", f"is {named(wanted[i], classes) or 'without labels'}")
        for i in worst[:MOST]
    ]
    return draw_mistakes(out, images, worst, lines, decode, "the labels that are answered, and those it has")
