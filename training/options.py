"""The options of `training.evaluate` and `training.compare`; those of `training.tune` are in `training.config`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvaluateConfig:
    """Accuracy, negative log likelihood and calibration error on a task's test set.

    Give one of --bundle, --onnx and --backbone; with a shared graph, which has no task of its own, --bundle too.
    """

    bundle: Path | None = None
    """A run's folder, or a task's folder in a store."""
    onnx: Path | None = None
    """An exported graph or engine of any precision, with its bundle beside it, or given with --bundle."""
    backbone: str | None = None
    """A timm model by the head that comes with its weights, tagged with a task: vit_tinyd6_patch4_32.cifar10."""
    backbone_weights: Path | None = None
    """The file that a bundle's task was tuned on, if it was tuned on one."""
    data_dir: Path | None = None
    """The folder that holds the task's images; the run's own if left out."""
    split: str | None = None
    """As in training.tune; the run's own if left out."""
    device: str = "auto"
    """auto, cpu or cuda; a graph runs on the CPU, an engine on its GPU."""


@dataclass(frozen=True)
class CompareConfig:
    """Tune every task by every method with every seed, and compare with the dense adapter."""

    tasks: str = "digits,sprites-location"
    """Built-in tasks, or folders and archives of that name in --data-dir, with commas between."""
    methods: str = "linear,adapter,mosa"
    seeds: int = 5
    """Runs of each task and method with the chosen setting."""
    trials: int = 1
    """Settings that adapter and mosa try on seed 0; 1 is the preset alone."""
    epochs: int | None = None
    """Of every run; each task's preset if left out."""
    data_dir: Path | None = None
    """The folder that holds the images: `<task>/` or `<task>.tar*` for each task that needs any."""
    precision: str = "auto"
    """As in training.tune."""
    jobs: int = 1
    """Runs at a time."""
    beside: Path | None = None
    """The compare.csv of an earlier comparison, whose other methods stand in the tables too."""
    out: Path = Path("runs/compare")
