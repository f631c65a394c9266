"""What is evaluated: a bundle, an exported graph, or a backbone with a head of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import timm.data

from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Weights, check_name
from mosa_deploy.backbones.names import as_timm
from mosa_deploy.bundles.answers import Thresholds
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array, Preprocess, probabilities
from mosa_deploy.bundles.record import RECORD, Record, read_record
from mosa_deploy.errors import ConfigError
from mosa_deploy.graphs.adapter_weights import choose_layout
from mosa_deploy.runtimes.names import DEFAULT_RUNNER
from mosa_deploy.runtimes.runner import Runner, open_runner
from mosa_deploy.runtimes.shared import SharedTask, bank_scales
from training.data import ImageSet
from training.devices import choose_device
from training.loop import predict, progress
from training.options import EvaluateConfig
from training.tasks import TASKS, find
from training.tasks.cifar10 import CLASSES as CIFAR10

BATCH = 256

Logits = Callable[[ImageSet], Array]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a bundle, a graph or a backbone.

    `logits` maps decoded test images to (N, K). It loads the model only when it is called.
    """

    name: str
    """The name of the task, or of the backbone."""
    dataset: str
    preprocess: Preprocess
    temperature: float
    classes: tuple[str, ...]
    logits: Logits
    record: Record | None = None
    """That of a task; None for a backbone with a head of its own."""

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.record is not None and self.record.multi_label

    @property
    def thresholds(self) -> Thresholds:
        """The threshold of each label; None if an image has one class."""
        return None if self.record is None else self.record.thresholds

    def scores(self, images: ImageSet) -> Array:
        """Calibrated probabilities (N, K)."""
        logits = self.logits(images)
        return probabilities(logits, self.temperature) if self.record is None else self.record.scores(logits)


def choose_subject(config: EvaluateConfig) -> tuple[Subject, Path | None]:
    """What the options name, and the folder of its bundle, if it has one.

    Raises:
        ConfigError: not exactly one of a bundle, a graph and a backbone is given.
        MosaError: the bundle is missing or damaged, or the backbone unknown.
    """
    shared = config.bundle is not None and config.onnx is not None and not own_graph(config.onnx)
    if [None if shared else config.bundle, config.onnx, config.backbone].count(None) != 2:
        raise ConfigError("give one of --bundle FOLDER, --onnx FILE and --backbone NAME")
    if config.backbone_weights is not None and (config.bundle is None or config.onnx is not None):
        raise ConfigError("--backbone-weights goes with --bundle: leave it out")
    if config.backbone is not None:
        return of_backbone(config, config.backbone), None
    if config.bundle is None and config.onnx is not None and not own_graph(config.onnx):
        raise ConfigError(f"{config.onnx} has no task beside it: name one with --bundle, artifacts/tasks/NAME")
    folder = config.bundle or (config.onnx or Path()).parent
    return of_task(config, read_record(folder)), folder


def of_backbone(config: EvaluateConfig, name: str) -> Subject:
    """A timm model with its own head. The tag in its name, such as `cifar10`, is the task.

    Raises:
        BackboneError: timm knows no such model.
        ConfigError: the tag is not the name of a task.
    """
    check_name(name)
    known = timm.get_pretrained_cfg(as_timm(name))
    if known is None or known.tag not in TASKS:
        raise ConfigError(f"--backbone {name}: its tag is no task; {embedded.NAME} has a head of its own")
    device = choose_device(config.device)
    model = timm.create_model(name, pretrained=True).to(device)
    assert isinstance(model, Transformer)
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model), find(known.tag).squash)

    def logits(images: ImageSet) -> Array:
        return np.asarray(predict(model, images, preprocess, device))

    classes = CIFAR10 if name == embedded.NAME else tuple(f"class{i}" for i in range(model.num_classes))
    return Subject(name, known.tag, preprocess, 1.0, classes, logits)


def of_task(config: EvaluateConfig, record: Record) -> Subject:
    """A task's bundle or its graph, which is loaded only when its logits are computed."""
    device = choose_device(config.device)

    def of_graph(images: ImageSet) -> Array:
        assert config.onnx is not None
        answer, most = open_graph(config.onnx, config.bundle)
        batches = progress(images.split(most), "predicting", math.ceil(len(images) / most))
        return np.concatenate([answer(record.preprocess.normalise(pixels.numpy())) for pixels in batches])

    def of_bundle(images: ImageSet) -> Array:
        assert config.bundle is not None
        weights = Weights("file", config.backbone_weights) if config.backbone_weights else None
        model = restore(Bundle.load(config.bundle), weights).to(device)
        return np.asarray(predict(model, images, record.preprocess, device))

    logits = of_bundle if config.onnx is None else of_graph
    return Subject(record.task, record.dataset, record.preprocess, record.temperature, record.classes, logits, record)


def own_graph(path: Path) -> bool:
    """Whether a graph or an engine belongs to one task, whose bundle lies beside it. Otherwise many tasks share it."""
    return (path.parent / RECORD).is_file() or not path.is_file()


def open_graph(path: Path, task: Path | None) -> tuple[Callable[[Array], Array], int]:
    """A function from images (B, 3, H, W) to logits (B, K), and the largest batch that it takes.

    If the graph is shared, `task` is the folder of the task's bundle; otherwise it is None.
    """
    shared = None if task is None else shared_task(path, task)
    runner = open_runner(path, "tensorrt" if path.suffix == ".engine" else DEFAULT_RUNNER)
    return runner.run if shared is None else shared.answer_by(runner), largest_batch(runner)


def shared_task(graph: Path, task: Path) -> SharedTask:
    """The task whose bundle is in the folder `task`, for a shared graph in any precision.

    Raises:
        ConfigError: the graph serves tasks of another kind.
        StoreError: the index beside the graph is missing or damaged.
    """
    bundle = Bundle.load(task)
    file = f"{graph.name.split('.')[0]}.onnx"
    layout = choose_layout(bundle.record, (file,))
    if layout.file != file:
        raise ConfigError(
            f"--onnx {graph} serves tasks of another kind than '{bundle.record.task}': give {layout.file}"
        )
    return SharedTask.alone(bundle, layout, bank_scales(graph))


def largest_batch(runner: Runner) -> int:
    """The largest batch that a runner takes: for an engine, its largest profile."""
    return runner.sizes[-1] if runner.sizes else BATCH
