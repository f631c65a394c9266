"""Measure a task on its test set.

    mosa evaluate --bundle runs/digits
    mosa evaluate --onnx artifacts/tasks/digits/folded.onnx
    mosa evaluate --onnx artifacts/backbones/NAME/shared.fp16.onnx --bundle artifacts/tasks/digits
    mosa evaluate --backbone vit_tinyd6_patch4_32.cifar10 --data-dir cifar10.tar.gz

Classes are matched by name. Everything else uses validation images; this is the only place that reads the test set.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import timm.data
import torch

from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Weights, check_name
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.class_match import match_classes
from mosa_deploy.bundles.preprocess import Array, Preprocess, probabilities
from mosa_deploy.bundles.record import RECORD, Record, read_record
from mosa_deploy.errors import ConfigError, DataError, command
from mosa_deploy.runtimes.names import DEFAULT_RUNNER
from mosa_deploy.runtimes.runner import Runner, open_runner
from mosa_deploy.runtimes.shared import SharedTask
from training.arguments import evaluate_config
from training.data import Images
from training.loop import predict
from training.options import EvaluateConfig
from training.reading import decode_all
from training.run import read_settings
from training.scores import classification_metrics
from training.tasks import TASKS, find
from training.tasks.cifar10 import CLASSES as CIFAR10
from training.tasks.folder import has_sets
from training.tune import choose_device

BATCH = 256

Logits = Callable[[Images], Array]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a bundle, a graph or a backbone.

    `logits` maps decoded test images to (N, K). It loads the model only when it is called.
    """

    dataset: str
    preprocess: Preprocess
    temperature: float
    classes: tuple[str, ...]
    logits: Logits


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Accuracy, negative log likelihood and expected calibration error on the test set.

    Raises:
        ConfigError: not exactly one of a bundle, a graph and a backbone is given.
        MosaError: the model or the images are missing or damaged, or their classes differ.
    """
    shared = config.bundle is not None and config.onnx is not None and not own_graph(config.onnx)
    if [None if shared else config.bundle, config.onnx, config.backbone].count(None) != 2:
        raise ConfigError("give one of --bundle FOLDER, --onnx FILE and --backbone NAME")
    if config.backbone_weights is not None and (config.bundle is None or config.onnx is not None):
        raise ConfigError("--backbone-weights goes with --bundle: leave it out")
    if config.backbone is not None:
        subject = of_backbone(config, config.backbone)
        images = ImageSettings(config.data_dir, config.split, config.labels, config.group)
    else:
        if config.bundle is None and config.onnx is not None and not own_graph(config.onnx):
            raise ConfigError(f"{config.onnx} has no task beside it: name one with --bundle, artifacts/tasks/NAME")
        folder = config.bundle or (config.onnx or Path()).parent
        subject = of_task(config, read_record(folder))
        images = image_settings(config, folder)
    data_dir = images.data_dir
    splits = find(subject.dataset, images.labels, images.group).splits(data_dir, images.split)
    for remark in splits.remarks:
        print(remark)
    print(f"{len(splits.test):,} test images, {splits.note}")
    if not splits.test:
        raise DataError(
            f"there is no test set in {data_dir}: give --data-dir FOLDER that holds test/<class>/<file>; the figures on"
            " validation are in the run's report.md"
        )
    match = match_classes(subject.classes, splits.classes, f"--data-dir {data_dir}" if data_dir else subject.dataset)
    for note in match.notes:
        print(f"warning: {note}", file=sys.stderr)
    test = decode_all(splits.test, subject.preprocess, "test")
    test = replace(test, labels=torch.tensor(match.places)[test.labels])
    return classification_metrics(probabilities(subject.logits(test), subject.temperature), test.labels)


def of_backbone(config: EvaluateConfig, name: str) -> Subject:
    """A timm model with its own head. The tag in its name, such as `cifar10`, is the task.

    Raises:
        BackboneError: timm knows no such model.
        ConfigError: the tag is not the name of a task.
    """
    check_name(name)
    known = timm.get_pretrained_cfg(name)
    if known is None or known.tag not in TASKS:
        raise ConfigError(f"--backbone {name}: its tag is no task; {embedded.NAME} has a head of its own")
    device = choose_device(config.device)
    model = timm.create_model(name, pretrained=True).to(device)
    assert isinstance(model, Transformer)
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model), find(known.tag).squash)

    def logits(images: Images) -> Array:
        return np.asarray(predict(model, images, preprocess, device))

    classes = CIFAR10 if name == embedded.NAME else tuple(f"class{i}" for i in range(model.num_classes))
    return Subject(known.tag, preprocess, 1.0, classes, logits)


def of_task(config: EvaluateConfig, record: Record) -> Subject:
    """A task's bundle or its graph, which is loaded only when its logits are computed."""
    device = choose_device(config.device)

    def of_graph(images: Images) -> Array:
        assert config.onnx is not None
        answer, most = open_graph(config.onnx, config.bundle)
        batches = images.pixels.split(most)
        return np.concatenate([answer(record.preprocess.normalise(pixels.numpy())) for pixels in batches])

    def of_bundle(images: Images) -> Array:
        assert config.bundle is not None
        weights = Weights("file", config.backbone_weights) if config.backbone_weights else None
        model = restore(Bundle.load(config.bundle), weights).to(device)
        return np.asarray(predict(model, images, record.preprocess, device))

    logits = of_bundle if config.onnx is None else of_graph
    return Subject(record.dataset, record.preprocess, record.temperature, record.classes, logits)


def own_graph(path: Path) -> bool:
    """Whether a graph or an engine belongs to one task, whose bundle lies beside it. Otherwise many tasks share it."""
    return (path.parent / RECORD).is_file() or not path.is_file()


def open_graph(path: Path, task: Path | None) -> tuple[Callable[[Array], Array], int]:
    """A function from images (B, 3, H, W) to logits (B, K), and the largest batch that it takes.

    If the graph is shared, `task` is the folder of the task's bundle; otherwise it is None.
    """
    runner = open_runner(path, "tensorrt" if path.suffix == ".engine" else DEFAULT_RUNNER)
    answer = runner.run if task is None else SharedTask.alone(Bundle.load(task)).answer_by(runner)
    return answer, largest_batch(runner)


def largest_batch(runner: Runner) -> int:
    """The largest batch that a runner takes: for an engine, its largest profile."""
    return runner.sizes[-1] if runner.sizes else BATCH


class ImageSettings(NamedTuple):
    """Which images are evaluated: the options of these names."""

    data_dir: Path | None
    split: str | None
    labels: tuple[Path, ...]
    group: str | None


def image_settings(config: EvaluateConfig, folder: Path) -> ImageSettings:
    """The options of the command line, otherwise those that the run was tuned with.

    Another folder that has sets of its own is taken as it is: the run's split says nothing about it.
    """
    run = read_settings(folder)
    data_dir = config.data_dir or (Path(run["data_dir"]) if run.get("data_dir") else None)
    if config.data_dir is not None and has_sets(config.data_dir):
        return ImageSettings(data_dir, config.split, config.labels, config.group)
    labels = config.labels or tuple(map(Path, run.get("labels") or ()))
    return ImageSettings(data_dir, config.split or run.get("split"), labels, config.group or run.get("group"))


def print_evaluation(config: EvaluateConfig) -> None:
    """Evaluate, and print the metrics in one line."""
    measured = evaluate(config)
    print(
        f"test of {config.onnx or config.bundle or config.backbone}: "
        + ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
    )


@command
def main() -> None:
    """The command line."""
    print_evaluation(evaluate_config())


if __name__ == "__main__":
    main()
