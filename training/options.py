"""The options of `mosa evaluate` and `mosa compare`. Those of `mosa tune` are in `training.config`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.ray_cluster import faults_of_gpus
from training.tune_options import ReadOptions


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure accuracy, also balanced, macro-F1, likelihood and calibration error on a task's test set.

    Give one of --bundle, --onnx and --backbone. A shared graph serves many tasks: name one with --bundle as well.
    """

    bundle: Path | None = None
    """Folder of a run, or of a task in a store."""
    onnx: Path | None = None
    """An exported graph or engine. Its bundle lies in the same folder, or is given with --bundle."""
    backbone: str | None = None
    """Name of a timm model whose weights include a head for a built-in task: vit_tinyd6_patch4_32.cifar10."""
    backbone_weights: Path | None = None
    """The file of backbone weights that the task was tuned with, if it was tuned with --backbone-weights."""
    data_dir: Path | None = None
    """Folder, or tar or zip archive, of the task's images. Default: the one that the run was tuned with."""
    labels: tuple[Path, ...] = ()
    """Table of the images' classes, as in `mosa tune`. Default: as the run was tuned."""
    group: str | None = None
    """Which images stay together in one set, as in `mosa tune`. Default: as the run was tuned."""
    split: str | None = None
    """How to split the images, as in `mosa tune`. Default: as the run was tuned."""
    out: Path | None = None
    """Folder for predictions.csv, one line per test image, mistakes.png and metrics.json. Default: `evaluation` in the
    folder of the run; evaluation/<task> for everything else."""
    reading: ReadOptions = field(default_factory=ReadOptions)
    """Which images are left out."""
    device: str = "auto"
    """Where to run a bundle or a backbone: cpu, cuda, or auto (CUDA if it is available). An ONNX graph always runs on
    the CPU, an engine on its GPU."""

    @property
    def own_images(self) -> bool:
        """Whether the images, and how they are split, are those of the run."""
        return self.data_dir is None and self.split is None and self.group is None and not self.labels


@dataclass(frozen=True)
class CompareConfig:
    """Tune every task with every method and several seeds, and compare the methods with the dense adapter."""

    tasks: str = ""
    """Comma-separated tasks: built-in ones, or names of folders and archives in --data-dir. Default: all of
    --tasks-file, or without one digits,sprites-location."""
    tasks_file: Path | None = None
    """TOML file with options of `mosa tune` for all tasks, in [defaults], and for each of them, in [tasks.NAME]. What
    this command line says goes before the file."""
    methods: str = "linear,adapter,mosa"
    """Comma-separated methods: linear, attentive, adapter, mosa, lora, mosl, repadapter, ssf, bitfit, full, or auto,
    which chooses one by itself."""
    seeds: int = 5
    """Number of runs of each task and method, one per seed, with the chosen setting."""
    trials: int = 1
    """Number of settings that each method tries with seed 0, except linear. 1 tries the first only: the preset's, with
    the learning rate and the scale that suit the backbone."""
    epochs: int | None = None
    """Number of epochs of every run. Default: that of each task's preset."""
    backbone: str | None = None
    """Name of a plain timm ViT, DINOv3 or Swin. Default: that of each task's preset."""
    backbone_weights: Path | None = None
    """File of the backbone's weights, as in `mosa tune`."""
    image_size: int | None = None
    """Height and width of the input in pixels, as in `mosa tune`."""
    adapt_blocks: int | None = None
    """Number of last blocks that have adapters. Default: all."""
    shots: str = ""
    """Comma-separated numbers of training images per class, e.g. 5,20; each is compared and drawn into a plot. Every
    seed draws its own images. Default: all images."""
    data_dir: Path | None = None
    """Folder of the tasks' images: it holds `<task>/`, `<task>.tar*` or `<task>.zip` for each task that needs
    images."""
    precision: str = "auto"
    """Precision of the training steps, as in `mosa tune`."""
    jobs: int | None = None
    """Number of runs at a time. Default: 1, or with --ray as many as the cluster has cores for."""
    ray: str | None = None
    """Tune on a Ray cluster, as in `mosa fleet`: HOST:PORT of its head as `ray start` prints it, or auto. This machine
    has to be one of its nodes, and --out and the images have to lie on storage that all nodes share."""
    gpus: float | None = None
    """With --ray, GPUs for each run; 0.25 lets four share one. Default: none."""
    beside: Path | None = None
    """The compare.csv of an earlier comparison. Its methods that are not run now are added to the tables."""
    out: Path = Path("runs/compare")
    """Folder of the runs and of compare.csv, compare.md and the plots."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = [
            f"--{name} {getattr(self, name)}: at least 1"
            for name in ("seeds", "trials", "jobs")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        faults += [f"--shots {each}: a whole number, at least 1" for each in names(self.shots) if not positive(each)]
        if not names(self.methods):
            faults.append("--methods needs a name")
        if self.tasks and not names(self.tasks):
            faults.append("--tasks needs a name")
        faults += faults_of_gpus(self.ray, self.gpus)
        if faults:
            raise ConfigError("; ".join(faults))

    def on_every_machine(self) -> Self:
        """With a folder whose path means the same wherever it is read."""
        return replace(self, out=self.out.absolute())


def names(text: str) -> list[str]:
    """`a,b` -> a and b, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def positive(text: str) -> bool:
    """Whether a text is a whole number above 0."""
    return text.isascii() and text.isdigit() and int(text) > 0
