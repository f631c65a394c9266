"""Write the files of a finished run: the temperature, the canary, statistics of features, the report, the bundle."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mosa_deploy.adapters.attach import task_state
from mosa_deploy.adapters.probe import TunedModel
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import CALIBRATION_IMAGES, NONE, Samples, write_samples
from mosa_deploy.bundles.canary import SIZE, Canary
from mosa_deploy.bundles.preprocess import Array, Preprocess
from mosa_deploy.bundles.record import CHECKPOINT, Record
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.seeds import derive
from training import run
from training.balance import turns_of
from training.chance import chance_remarks, temperature_remarks
from training.data import ImageSet
from training.dataset import Dataset
from training.label_report import write_label_report
from training.label_scores import calibrate, label_remarks
from training.loop import Row
from training.recipe import Recipe
from training.report import write_report
from training.scores import fit_temperature, measure
from training.unknown import Answers, pixels_of, predict_with_features, statistics_of


def write_results(
    out: Path,
    record: Record,
    recipe: Recipe,
    model: TunedModel,
    data: Dataset,
    rows: list[Row],
    device: str,
    tested: bool,
    exemplars: int | None = None,
    more: Mapping[str, float] | None = None,
) -> None:
    """Calibrate on validation, record the canary, and write all files of the run; the bundle comes last.

    `tested` says whether the images have a test set, `exemplars` how many training images of each class are kept at
    least. `more` are metrics that were measured before.
    """
    validation = data.validation
    logits, features = predict_with_features(model, validation, record.preprocess, device)
    record = calibrated(record, logits, validation.labels)
    scores = record.scores(logits.numpy())
    metrics = {
        **{f"validation_{name}": value for name, value in measure(record, scores, validation.labels).items()},
        "parameters": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
        **(more or {}),
    }
    statistics = statistics_of(model, record, data.train, Answers(features.numpy(), scores), device)
    model.cpu().eval()

    def answer(images: Array) -> Array:
        with torch.inference_mode():
            return record.scores(model(torch.from_numpy(images)).numpy())

    first = [example.read() for example in validation.examples[:SIZE]]
    canary = Canary.record(first, record.preprocess, answer)
    write_calibration(out, data.train, validation, record.preprocess, record.seed, exemplars)
    run.write_history(out, rows)
    write_text(out / run.METRICS, json.dumps(metrics, indent=2) + "\n")
    record = record.model_copy(update={"metrics": metrics})
    doubts = doubts_of(record, logits, validation.labels, chosen_from=len(rows))
    remarks = [*doubts, *data.remarks]
    report = write_label_report if record.multi_label else write_report
    report(out, record, recipe, logits, validation.labels, rows, tested, remarks)
    tensors = {name: value.numpy() for name, value in task_state(model, record.method).items()}
    bundle = Bundle(record, tensors, canary, statistics).save(out)
    (out / CHECKPOINT).unlink(missing_ok=True)
    print(f"{record.method} on {record.task}: validation {summary(record)}; bundle {bundle.digest[:12]} in {out}")
    for doubt in doubts:
        print(doubt, file=sys.stderr)


def calibrated(record: Record, logits: Tensor, labels: Tensor) -> Record:
    """The record with the temperature, or the scales and thresholds of its labels, fitted on validation."""
    if record.multi_label:
        return record.model_copy(update={"per_label": calibrate(logits, labels)})
    return record.model_copy(update={"temperature": fit_temperature(logits, labels)})


def doubts_of(record: Record, logits: Tensor, labels: Tensor, chosen_from: int) -> list[str]:
    """What casts doubt on the result, one line each; it is the best of `chosen_from` on these images."""
    if record.multi_label:
        return label_remarks(record.scores(logits.numpy()), labels, record.classes)
    predicted = logits.argmax(1).numpy()
    return [
        *chance_remarks(labels.numpy(), predicted, record.classes, chosen_from=chosen_from),
        *temperature_remarks(record.temperature),
    ]


def summary(record: Record) -> str:
    """The figures of a run in a line."""
    metrics = record.metrics
    if record.multi_label:
        return (
            f"mAP {metrics['validation_map']:.4f}, macro-F1 {metrics['validation_macro_f1']:.4f} at the chosen"
            f" thresholds, ECE {metrics['validation_ece']:.3f}"
        )
    return (
        f"accuracy {metrics['validation_accuracy']:.4f}, ECE {metrics['validation_ece']:.3f} at temperature"
        f" {record.temperature:.2f}"
    )


def write_calibration(
    out: Path,
    train: ImageSet,
    validation: ImageSet,
    preprocess: Preprocess,
    seed: int,
    exemplars: int | None = None,
) -> None:
    """Write `calibration.npz`: up to 256 training images, and up to 256 validation images, with their labels.

    All classes have as many training images as it takes to make 256, or those they have. With `exemplars` they have at
    least that many.
    """

    def drawn(images: ImageSet, use: str) -> Tensor:
        return torch.randperm(len(images), generator=torch.Generator().manual_seed(derive(seed, use)))

    kept, compared = drawn(train, "calibration"), drawn(validation, "parity")[:CALIBRATION_IMAGES].tolist()
    several = train.labels.ndim == 2
    count = CALIBRATION_IMAGES
    if not several:
        turns = turns_of(train.labels[kept])
        kept = kept[turns.argsort(stable=True)]
        count = max(count, int((turns < (exemplars or 0)).sum()))
    kept = kept[:count]
    labels = validation.labels[compared]
    samples = Samples(
        pixels_of(train, kept.tolist(), preprocess).numpy(),
        validation.take(compared).numpy(),
        (labels.to(torch.uint8) if several else labels).numpy(),
        NONE if several else train.labels[kept].numpy(),
    )
    write_samples(out, samples)
