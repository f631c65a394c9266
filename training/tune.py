"""Tune one task: `mosa tune --task NAME`.

Reads from top to bottom: find the data, load the frozen backbone, train or fit, fit the temperature, write the run.
"""

import re
from dataclasses import replace
from pathlib import Path

import timm.data
import torch

from mosa_deploy.adapters.attach import attach, freeze
from mosa_deploy.adapters.probe import Probe, check_features, with_features
from mosa_deploy.adapters.restore import describe_backbone
from mosa_deploy.backbones.foldable import check_style
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, PROBES, SPLIT_METHODS, AdapterConfig, Method
from mosa_deploy.bundles.decode import Decode
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.probe_features import Features
from mosa_deploy.bundles.record import TASK_NAME, TASK_NAME_RULE, Record
from mosa_deploy.errors import ConfigError, DataError, command
from mosa_deploy.runtimes import cuda
from mosa_deploy.utils.seeds import derive
from mosa_deploy.utils.versions import git_commit, library_versions
from training import run
from training.arguments import tune_config
from training.attentive import fit_attentive
from training.config import TuneConfig
from training.dataset import Read, read_dataset
from training.events import write_events
from training.loop import Row, Trainer, Watch
from training.merge_scale import fit_merge_scale
from training.method_settings import AUTO
from training.optimiser import check_optimiser, optimiser_remarks
from training.precision import choose_precision, why_precision
from training.presets import backbone_remarks, choose_image_size, preset
from training.probe import fit_probe
from training.ranks import Ranks, first_speaks, is_cpu_wanted, joined
from training.recipe import adapter_config
from training.recipes import CONVENTIONS
from training.recipes import remarks as recipe_remarks
from training.reference import start_head
from training.results import write_results
from training.run_settings import describe
from training.scores import early_ending
from training.tasks import find
from training.tasks.subset import Subset
from training.workers import Workers


def tune(config: TuneConfig, read: Read = read_dataset, watch: Watch | None = None) -> Path:
    """Tune a task and return the folder of the run.

    `read` reads the images, and `watch` is shown the history after each epoch: a search shares the one between its
    runs, and stops a run by the other.

    Raises:
        MosaError: an option, the data or the backbone cannot be used, or training cannot continue.
    """
    with first_speaks():
        method, device = config.checked_method(), choose_device(config.device)
    with joined(device) as ranks:
        if ranks.count > 1 and method in (AUTO, *PROBES):
            raise ConfigError(f"--method {method} runs in one process: start it without torchrun or accelerate launch")
        if method == "auto":
            # Optuna is loaded for this method alone.
            from training.auto import tune_auto

            return tune_auto(config, tune)
        with Workers(max(1, config.streaming.processes // ranks.count)) as workers:
            return tune_one(config, method, read, watch, workers, ranks)


def tune_one(
    config: TuneConfig, method: Method, read: Read, watch: Watch | None, workers: Workers, ranks: Ranks
) -> Path:
    """The same for a method that is named; `workers` decode the images if there are many, and `ranks` share batches.

    Raises:
        MosaError: as `tune`.
    """
    task = find(config.task, config.labels, config.group)
    name = config.task if config.name is None else config.name
    if not re.fullmatch(TASK_NAME, name):
        raise ConfigError(f"--name {name}: {TASK_NAME_RULE}")
    recipe = config.resolve(preset(task, config.backbone))
    check_optimiser(recipe, config.execution, ranks.count)
    device = choose_device(config.device)
    size = choose_image_size(config, recipe.backbone, device)
    known = backbone_remarks(config, recipe, size, device)
    config = replace(config, image_size=size)
    precision = choose_precision(config.precision, device)
    weights = Weights.choose(config.backbone_weights, config.random_weights)
    # Data before weights, which may have to be downloaded.
    splits = task.splits(config.data_dir, config.split)
    if not splits.train:
        raise DataError(
            f"--data-dir {config.data_dir} holds a test set alone: add train/<class>/<file> to tune on, or evaluate a"
            " tuned task on it"
        )
    splits = Subset(config.shots, config.fraction, config.draw).of(splits)
    own = recipe_remarks(recipe.recipe, config.given()) + optimiser_remarks(recipe, config.given())
    splits = replace(splits, remarks=(*known, *splits.remarks, *own))
    conventions = CONVENTIONS[recipe.recipe]
    model = load_backbone(recipe.backbone, weights, img_size=config.image_size)
    features: Features = "attended" if method == "attentive" else config.features
    check_features(model, features)
    if method not in PROBES:
        check_style(model, recipe.style)
    backbone = describe_backbone(recipe.backbone, weights.source, model)
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model) | conventions.images, task.squash)
    if config.white_level is not None:
        preprocess = preprocess.model_copy(update={"decode": Decode(white=config.white_level)})
    out = config.out or Path("runs") / name
    if ranks.any(ranks.first and run.open_run(out, describe(config, recipe, precision), config.resume)):
        (out / run.CHECKPOINT).unlink(missing_ok=True)
        print(f"{out} is finished: evaluate it, export it, or choose another --out")
        return out

    how = "" if method in PROBES else f", {why_precision(config.precision, device)}"
    print(f"{name}: {len(splits.classes)} classes, {splits.note}; {recipe.backbone} on {device}{how}{ranks}")
    for remark in splits.remarks:
        print(remark)
    if ranks.first:
        run.keep_split(out, splits, config.resume)
    augmentation = replace(config.augmentation, augment=recipe.augment)
    data = read(splits, preprocess, replace(config, augmentation=augmentation), ranks.folder(out), workers)
    train, validation = data.train, data.validation
    if len(train) < recipe.batch_size and method != "linear":
        print(f"{len(train)} training images are fewer than --batch-size {recipe.batch_size}: one step per epoch")

    torch.manual_seed(derive(config.seed, "head"))
    tuned = with_features(model, features, len(splits.classes))
    adapter: AdapterConfig | None = None
    if isinstance(tuned, Probe) and method == "attentive":
        whole = data.settled()
        rows = fit_attentive(tuned, whole.train, whole.validation, preprocess, recipe, config.seed, device)
    elif method == "linear":
        rows = fit_probe(
            tuned, train.settled(), validation.settled(), preprocess, device, recipe.balance, recipe.select
        )
        freeze(tuned)
    else:
        if conventions.head_bias is not None:
            start_head(model, conventions.head_bias)
        if method not in BACKBONE_METHODS:
            adapter = adapter_config(recipe)
            attach(model, adapter, config.seed, split=method in SPLIT_METHODS)
        # A CPU computes the steps itself, and changes an image in a hundredth of the time that a step takes for it.
        with Workers(workers.count if device == "cuda" else 0) as others:
            trainer = Trainer(
                model,
                train,
                validation,
                preprocess,
                recipe,
                config.seed,
                device,
                precision,
                config.execution,
                ranks,
                others,
                method,
            )
            rows = fit(trainer, out, config.resume, watch)
        if not ranks.first:
            return out
        if adapter is not None and recipe.merge_scale == "learned":
            adapter = replace(adapter, merge_scale=fit_merge_scale(model, validation.settled(), preprocess, device))
    record = Record(
        task=name,
        dataset=config.task,
        backbone=backbone,
        method=method,
        form="split" if method in SPLIT_METHODS else "merged",
        adapter=adapter,
        features=features,
        classes=splits.classes,
        preprocess=preprocess,
        temperature=1.0,
        metrics={},
        seed=config.seed,
        versions=library_versions(),
        git_commit=git_commit(),
    )
    write_results(out, record, recipe, tuned, data.settled(), rows, device, tested=bool(splits.test))
    return out


def choose_device(name: str) -> str:
    """The device `cpu` or `cuda`; `auto` chooses CUDA if it is available.

    Raises:
        ConfigError: the device is unknown or not available.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {name}: choose auto, cpu or cuda")
    if name == "auto" and is_cpu_wanted():
        return "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; leave it out to use the CPU")
    if name == "auto" and (reason := why_no_cuda()):
        print(
            f"warning: an NVIDIA GPU is here, but the CPU is used: {reason}; --device cpu if that is meant", flush=True
        )
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def why_no_cuda() -> str | None:
    """Why torch cannot use the GPU that is in this machine; None if it can, or if there is none or it is hidden."""
    if torch.cuda.is_available() or not cuda.has_gpu() or cuda.is_hidden():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA, install one with it"
    if not cuda.has_driver():
        return cuda.NO_DRIVER
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())[:300]
    return "torch finds no device"


def fit(trainer: Trainer, out: Path, resume: bool, watch: Watch | None) -> list[Row]:
    """Run the remaining epochs, with a checkpoint after each; returns the rows of the history."""
    checkpoint = out / run.CHECKPOINT
    if resume and checkpoint.is_file():
        trainer.load(checkpoint)
        print(f"resumed after epoch {trainer.state.epoch}")

    def finished(trainer: Trainer) -> None:
        if not trainer.ranks.first:
            return
        trainer.save(checkpoint)
        run.write_history(out, trainer.state.history)
        write_events(out, trainer.state.history)
        row = trainer.state.history[-1]
        print(
            f"epoch {row['epoch']:.0f}/{trainer.recipe.epochs}: cross entropy {row['cross_entropy']:.3f},"
            f" consistency {row['consistency']:.3f}, validation accuracy {row['validation_accuracy']:.4f},"
            f" {row['images_per_second']:.0f} images/s"
            + (f", {trainer.time_left()} left" if row["epoch"] < trainer.recipe.epochs else ""),
            flush=True,
        )
        if watch is not None:
            watch(trainer.state.history)

    trainer.fit(finished)
    if ending := early_ending(trainer.state.history, trainer.recipe):
        print(ending)
    return trainer.state.history


@command
def main() -> None:
    """The command line."""
    with first_speaks():
        config = tune_config()
    tune(config)


if __name__ == "__main__":
    main()
