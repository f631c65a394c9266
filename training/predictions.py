"""What an evaluation leaves to look at: every answer in a table, and a picture of the worst mistakes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mosa_deploy.bundles.decode import Decode
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.utils.files import write_csv
from training.data import ImageSet
from training.plots import Tile, draw_tiles

PREDICTIONS, MISTAKES = "predictions.csv", "mistakes.png"

MOST = 24
"""The largest number of mistakes in the picture."""


def write_predictions(out: Path, images: ImageSet, probabilities: Array, classes: Sequence[str]) -> None:
    """Write `predictions.csv`: the file, its label, the answer and the answer's probability, one line per image."""
    answers = probabilities.argmax(1)
    write_csv(
        out / PREDICTIONS,
        ("file", "label", "answer", "score"),
        (
            (example.name, classes[label], classes[answer], f"{scores[answer]:.6f}")
            for example, label, answer, scores in zip(
                images.examples, images.labels.tolist(), answers.tolist(), probabilities, strict=True
            )
        ),
    )


def write_mistakes(out: Path, images: ImageSet, probabilities: Array, classes: Sequence[str], decode: Decode) -> int:
    """Draw `mistakes.png`, the wrong answers with the highest scores first; returns how many there are in all."""
    labels, answers, scores = images.labels.numpy(), probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(answers != labels)
    worst = wrong[np.argsort(-scores[wrong], kind="stable")]
    lines = [(f"{classes[answers[i]]} {scores[i]:.2f}", f"is {classes[labels[i]]}") for i in worst[:MOST].tolist()]
    return draw_mistakes(out, images, worst.tolist(), lines, decode, "the answer with its score, and the label")


def draw_mistakes(
    out: Path, images: ImageSet, worst: Sequence[int], lines: Sequence[tuple[str, str]], decode: Decode, what: str
) -> int:
    """Draw the first images of `worst`, with the answer and the label in `lines`; returns how many mistakes there are.

    `what` says in the title what the lines are.
    """
    (out / MISTAKES).unlink(missing_ok=True)
    if not worst:
        return 0
    tiles = [
        Tile(decode.image(images.examples[i].read()), answer, label, images.examples[i].name)
        for i, (answer, label) in zip(worst, lines, strict=False)
    ]
    title = f"{len(tiles)} of {len(worst)} mistakes on {len(images)} test images: {what}"
    draw_tiles(out / MISTAKES, tiles, title)
    return len(worst)
