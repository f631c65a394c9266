"""Write the files of a finished run: the temperature, the canary, the report, the bundle."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mosa_deploy.adapters.attach import task_state
from mosa_deploy.adapters.probe import TunedModel
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import CALIBRATION_IMAGES, Samples, write_samples
from mosa_deploy.bundles.canary import SIZE, Canary
from mosa_deploy.bundles.preprocess import Array, Preprocess, probabilities
from mosa_deploy.bundles.record import Record
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.seeds import derive
from training import run
from training.chance import chance_remarks, temperature_remarks
from training.data import ImageSet
from training.dataset import Dataset
from training.loop import Row, predict
from training.recipe import Recipe
from training.report import write_report
from training.scores import classification_metrics, fit_temperature


def write_results(
    out: Path,
    record: Record,
    recipe: Recipe,
    model: TunedModel,
    data: Dataset,
    rows: list[Row],
    device: str,
    tested: bool,
) -> None:
    """Fit the temperature on validation, record the canary, and write all files of the run; the bundle comes last.

    `tested` says whether the images have a test set.
    """
    validation = data.validation
    logits = predict(model, validation, record.preprocess, device)
    temperature = fit_temperature(logits, validation.labels)
    metrics = {
        **{
            f"validation_{k}": v
            for k, v in classification_metrics(probabilities(logits.numpy(), temperature), validation.labels).items()
        },
        "parameters": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
    }
    model.cpu().eval()

    def answer(images: Array) -> Array:
        with torch.inference_mode():
            return probabilities(model(torch.from_numpy(images)).numpy(), temperature)

    first = [example.read() for example in validation.examples[:SIZE]]
    canary = Canary.record(first, record.preprocess, answer)
    write_calibration(out, data.train, validation, record.preprocess, record.seed)
    run.write_history(out, rows)
    write_text(out / run.METRICS, json.dumps(metrics, indent=2) + "\n")
    record = record.model_copy(update={"temperature": temperature, "metrics": metrics})
    doubts = [
        *chance_remarks(validation.labels.numpy(), logits.argmax(1).numpy(), record.classes, chosen_from=len(rows)),
        *temperature_remarks(temperature),
    ]
    remarks = [*doubts, *data.remarks]
    write_report(out, record, recipe, logits, validation.labels, rows, tested, remarks)
    tensors = {name: value.numpy() for name, value in task_state(model, record.method).items()}
    bundle = Bundle(record, tensors, canary).save(out)
    (out / run.CHECKPOINT).unlink(missing_ok=True)
    print(
        f"{record.method} on {record.task}: validation accuracy {metrics['validation_accuracy']:.4f},"
        f" ECE {metrics['validation_ece']:.3f} at temperature {temperature:.2f}; bundle {bundle.digest[:12]} in {out}"
    )
    for doubt in doubts:
        print(doubt, file=sys.stderr)


def write_calibration(out: Path, train: ImageSet, validation: ImageSet, preprocess: Preprocess, seed: int) -> None:
    """Write `calibration.npz`: up to 256 training images, and up to 256 validation images with their labels."""

    def some(images: ImageSet, use: str) -> list[int]:
        generator = torch.Generator().manual_seed(derive(seed, use))
        return torch.randperm(len(images), generator=generator)[:CALIBRATION_IMAGES].tolist()

    calibrating, compared = some(train, "calibration"), some(validation, "parity")
    images = train.take(calibrating).numpy()
    if images.shape[1:3] != preprocess.size:  # They were read with a margin.
        images = np.stack([preprocess.pixels(Image.fromarray(image)) for image in images])
    samples = Samples(images, validation.take(compared).numpy(), validation.labels[compared].numpy())
    write_samples(out, samples)
