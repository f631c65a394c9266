"""Several labels per image against scikit-learn: `python -m benchmarks.labels`.

Tunes `sprites-labels` by MoSA, and fits scikit-learn's one-vs-rest logistic regression on the features that the tuned
model's own head reads. Both answer the test set; the target is 0.95 of the regression's mAP. It takes some minutes.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mosa_deploy.adapters.restore import restore
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import command
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.config import TuneConfig
from training.data import Images
from training.label_scores import as_targets, label_metrics, mean_average_precision
from training.loop import predict
from training.probe import GRID
from training.reading import Reader
from training.tasks.sprites_labels import CLASSES, SpritesLabels
from training.tune import tune

TARGET = 0.95


@dataclass(frozen=True)
class Config:
    """Compare a tuned task of several labels with scikit-learn's one-vs-rest on the same adapted features."""

    method: str = "mosa"
    """How it is tuned, as in `mosa tune`."""
    epochs: int | None = None
    """Default: the task's preset."""
    seeds: int = 1
    """Number of runs, one per seed."""
    out: Path = Path("benchmarks/results/labels.md")
    """The table to write."""


@dataclass(frozen=True)
class Result:
    """What came of one seed, on the test set."""

    ours: dict[str, float]
    regression: float
    """mAP of the one-vs-rest regression."""

    @property
    def ratio(self) -> float:
        """Our mAP as a share of the regression's."""
        return self.ours["map"] / self.regression


def compare(run: Path) -> Result:
    """Answer the test set by the run in a folder, and by a regression on the features that its head reads."""
    bundle = Bundle.load(run)
    record, model, splits = bundle.record, restore(bundle), SpritesLabels().splits(None, None)
    assert record.per_label is not None
    reader = Reader(record.preprocess, classes=len(CLASSES))
    sets: dict[str, Images] = {name: reader.images(part, name) for name, part in splits.sets().items()}
    scores = record.scores(predict(model, sets["test"], record.preprocess, "cpu").numpy())
    model.reset_classifier(0)
    features = {name: predict(model, images, record.preprocess, "cpu").numpy() for name, images in sets.items()}
    targets = {name: as_targets(images.labels) for name, images in sets.items()}
    found = []
    for c in GRID:
        regression = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=c, max_iter=2000)))
        regression.fit(features["train"], targets["train"])
        answers = {name: np.asarray(regression.decision_function(features[name])) for name in ("validation", "test")}
        found.append(tuple(mean_average_precision(targets[name], answers[name]) for name in answers))
    return Result(label_metrics(scores, sets["test"].labels, record.per_label.thresholds), max(found)[1])


def report(config: Config, results: list[Result]) -> str:
    """The results in words."""
    rows = [
        (
            seed,
            *(f"{found.ours[name]:.4f}" for name in ("map", "macro_f1", "accuracy", "ece")),
            f"{found.regression:.4f}",
            f"{found.ratio:.3f}",
        )
        for seed, found in enumerate(results)
    ]
    head = ("seed", "mAP", "macro-F1", "accuracy", "ECE", "mAP of one-vs-rest", "ratio")
    return f"""# Several labels per image

{provenance("benchmarks.labels")}

`sprites-labels`, nine labels on 2,000 test images, {config.method} on the embedded backbone; one-vs-rest is
scikit-learn's logistic regression on the features that the tuned head reads, with C chosen on validation. Target: a
ratio of at least {TARGET}. Thresholds and calibration are those of the bundle; accuracy is the share of images all of
whose labels are right.

{table(head, rows, align="rrrrrrr")}
"""


@command
def main() -> None:
    """The command line."""
    config = tyro.cli(Config, prog="python -m benchmarks.labels")
    results = []
    for seed in range(config.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            given = TuneConfig(task=SpritesLabels.name, method=config.method, epochs=config.epochs, seed=seed)
            results.append(compare(tune(replace(given, out=Path(scratch) / "run", device="cpu"))))
    text = report(config, results)
    write_text(config.out, text)
    print(text)


if __name__ == "__main__":
    main()
