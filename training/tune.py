"""Tune one task: `mosa tune --task NAME`.

Reads from top to bottom: find the data, load the frozen backbone, train or fit, fit the temperature, write the run.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import timm.data
import torch

from mosa_deploy.adapters.attach import attach, freeze, task_state
from mosa_deploy.adapters.restore import describe_backbone
from mosa_deploy.backbones.foldable import Transformer, check_style
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import SPLIT_METHODS
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import CALIBRATION_IMAGES, Samples, write_samples
from mosa_deploy.bundles.canary import SIZE, Canary
from mosa_deploy.bundles.preprocess import Array, Preprocess, probabilities
from mosa_deploy.bundles.record import TASK_NAME, Record
from mosa_deploy.errors import ConfigError, DataError, command
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.seeds import derive
from mosa_deploy.utils.versions import git_commit, library_versions
from training import run
from training.arguments import tune_config
from training.config import Recipe, TuneConfig, adapter_config, describe
from training.data import Images, check_classes, decode_all
from training.events import write_events
from training.loop import Row, Trainer, predict
from training.merge_scale import fit_merge_scale
from training.probe import fit_probe
from training.report import write_report
from training.scores import classification_metrics, fit_temperature
from training.tasks import find


def tune(config: TuneConfig) -> Path:
    """Tune a task and return the folder of the run.

    Raises:
        MosaError: an option, the data or the backbone cannot be used, or training cannot continue.
    """
    task = find(config.task, config.labels, config.group)
    name = config.name or config.task
    if not re.fullmatch(TASK_NAME, name):
        raise ConfigError(f"--name {name}: lower-case letters, digits, '.', '_', '-', a letter first, 64 at most")
    method = config.checked_method()
    recipe = config.recipe(task.recipe)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    weights = Weights.choose(config.backbone_weights, config.random_weights)
    # Data before weights, which may have to be downloaded.
    splits = task.splits(config.data_dir, config.split)
    if not splits.train:
        raise DataError(
            f"--data-dir {config.data_dir} holds a test set alone: add train/<class>/<file> to tune on, or evaluate a"
            " tuned task on it"
        )
    model = load_backbone(recipe.backbone, weights, img_size=config.image_size)
    if method != "linear":
        check_style(model, recipe.style)
    backbone = describe_backbone(recipe.backbone, weights.source, model)
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model), task.squash)
    out = config.out or Path("runs") / name
    if run.open_run(out, describe(config, recipe, precision), config.resume):
        (out / run.CHECKPOINT).unlink(missing_ok=True)
        print(f"{out} is finished: evaluate it, export it, or choose another --out")
        return out

    print(f"{name}: {len(splits.classes)} classes, {splits.note}; {recipe.backbone} on {device}")
    for remark in splits.remarks:
        print(remark)
    train = decode_all(splits.train, preprocess, "training")
    validation = decode_all(splits.validation, preprocess, "validation")
    check_classes(train, splits.classes, "training")
    if len(train) < recipe.batch_size and method != "linear":
        print(f"{len(train)} training images are fewer than --batch-size {recipe.batch_size}: one step per epoch")

    torch.manual_seed(derive(config.seed, "head"))
    model.reset_classifier(len(splits.classes))
    if method == "linear":
        adapter, rows = None, fit_probe(model, train, validation, preprocess, device)
        freeze(model)
    else:
        adapter = adapter_config(recipe)
        attach(model, adapter, config.seed, split=method in SPLIT_METHODS)
        trainer = Trainer(model, train, validation, preprocess, recipe, config.seed, device, precision)
        rows = fit(trainer, out, config.resume)
        if recipe.merge_scale == "learned":
            adapter = replace(adapter, merge_scale=fit_merge_scale(model, validation, preprocess, device))
    record = Record(
        task=name,
        dataset=config.task,
        backbone=backbone,
        method=method,
        form="split" if method in SPLIT_METHODS else "merged",
        adapter=adapter,
        classes=splits.classes,
        preprocess=preprocess,
        temperature=1.0,
        metrics={},
        seed=config.seed,
        versions=library_versions(),
        git_commit=git_commit(),
    )
    write_results(out, record, recipe, model, train, validation, rows, device, tested=bool(splits.test))
    return out


def choose_device(name: str) -> str:
    """The device `cpu` or `cuda`; `auto` chooses CUDA if it is available.

    Raises:
        ConfigError: the device is unknown or not available.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; leave it out to use the CPU")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def choose_precision(name: str, device: str) -> str:
    """The precision `fp32` or `bf16`; `auto` chooses bf16 on CUDA and fp32 elsewhere.

    Raises:
        ConfigError: the precision is unknown.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"--precision {name}: choose auto, fp32 or bf16")
    return name if name != "auto" else "bf16" if device == "cuda" else "fp32"


def fit(trainer: Trainer, out: Path, resume: bool) -> list[Row]:
    """Run the remaining epochs, with a checkpoint after each; returns the rows of the history."""
    checkpoint = out / run.CHECKPOINT
    if resume and checkpoint.is_file():
        trainer.load(checkpoint)
        print(f"resumed after epoch {trainer.state.epoch}")

    def finished(trainer: Trainer) -> None:
        trainer.save(checkpoint)
        run.write_history(out, trainer.state.history)
        write_events(out, trainer.state.history)
        row = trainer.state.history[-1]
        print(
            f"epoch {row['epoch']:.0f}/{trainer.recipe.epochs}: cross entropy {row['cross_entropy']:.3f},"
            f" consistency {row['consistency']:.3f}, validation accuracy {row['validation_accuracy']:.4f},"
            f" {row['images_per_second']:.0f} images/s",
            flush=True,
        )

    trainer.fit(finished)
    return trainer.state.history


def write_results(
    out: Path,
    record: Record,
    recipe: Recipe,
    model: Transformer,
    train: Images,
    validation: Images,
    rows: list[Row],
    device: str,
    tested: bool,
) -> None:
    """Fit the temperature on validation, record the canary, and write all files of the run; the bundle comes last.

    `tested` says whether the images have a test set.
    """
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

    canary = Canary.record([e.read() for e in validation.examples[:SIZE]], record.preprocess, answer)
    write_calibration(out, train, validation, record.seed)
    run.write_history(out, rows)
    write_text(out / run.METRICS, json.dumps(metrics, indent=2) + "\n")
    record = record.model_copy(update={"temperature": temperature, "metrics": metrics})
    write_report(out, record, None if record.adapter is None else recipe, logits, validation.labels, rows, tested)
    tensors = {name: value.numpy() for name, value in task_state(model).items()}
    bundle = Bundle(record, tensors, canary).save(out)
    (out / run.CHECKPOINT).unlink(missing_ok=True)
    print(
        f"{record.method} on {record.task}: validation accuracy {metrics['validation_accuracy']:.4f},"
        f" ECE {metrics['validation_ece']:.3f} at temperature {temperature:.2f}; bundle {bundle.digest[:12]} in {out}"
    )


def write_calibration(out: Path, train: Images, validation: Images, seed: int) -> None:
    """Write `calibration.npz`: up to 256 training images, and up to 256 validation images with their labels."""

    def some(images: Images, use: str) -> list[int]:
        generator = torch.Generator().manual_seed(derive(seed, use))
        return torch.randperm(len(images), generator=generator)[:CALIBRATION_IMAGES].tolist()

    calibrating, compared = some(train, "calibration"), some(validation, "parity")
    samples = Samples(
        train.pixels[calibrating].numpy(), validation.pixels[compared].numpy(), validation.labels[compared].numpy()
    )
    write_samples(out, samples)


@command
def main() -> None:
    """The command line."""
    tune(tune_config())


if __name__ == "__main__":
    main()
