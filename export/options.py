"""The options of `mosa export`, `mosa convert` and `mosa latency`, checked before any slow import."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from mosa_deploy.bundles.model_args import Activation, ModelArgs, Pool
from mosa_deploy.bundles.record import TASK_NAME, TASK_NAME_RULE
from mosa_deploy.errors import ConfigError, unknown_name
from mosa_deploy.runtimes.names import DEFAULT_RUNNER, GRAPH_RUNNERS, PRECISIONS, Precision
from mosa_deploy.runtimes.tensorrt_library import Library

TARGETS = ("onnx", "tensorrt")

PRECISION_HELP = (
    f"Comma-separated precisions to write: {', '.join(PRECISIONS)}. The fp32 graph is always written; the others are"
    " compared with it."
)
BACKEND_HELP = f"Library that builds the engines: {' or '.join(get_args(Library))}. Default: the one that is installed."
RUNNERS_HELP = f"Runners that must give the same answers as the default one: any of {', '.join(GRAPH_RUNNERS)}."
TIMED_HELP = f"Runners to time: any of {', '.join(GRAPH_RUNNERS)}. Default: all that this machine has."
FILES_HELP = f"Precisions of the timed files: any of {', '.join(PRECISIONS)}. A runner takes those that suit it."

VARIANTS = ("plain", "control", "folded", "lora", "repadapter", "ssf", "unfolded", "shared", "shared-mixed")
"""The variants that `mosa latency` can time, in the order of its table; `export.variants` describes them."""

QUICK = ("plain", "control", "folded", "shared")
"""The variants that are timed for a bundle by default."""


@dataclass(frozen=True)
class FileOptions:
    """Which files to write, and what the engines are built for."""

    precision: Annotated[str, tyro.conf.arg(help=PRECISION_HELP)] = "fp32"
    max_accuracy_loss: float = 0.3
    """How many percentage points of accuracy on the validation images an int8 file may lose against fp32."""
    targets: str = "onnx"
    """onnx, or onnx,tensorrt to build engines too. Engines are built from the ONNX files, which are always written."""
    engine_backend: Annotated[str | None, tyro.conf.arg(help=BACKEND_HELP)] = None
    compute_capability: str | None = None
    """Compute capability of the GPU that will run the engines, e.g. sm86. Default: that of this machine's GPU."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Batch sizes that an engine is built for. A batch of another size is padded to the next larger one."""
    bank_slots: int = 64
    """Largest number of tasks that a shared engine can hold."""
    bank_bottleneck: int = 64
    """Largest bottleneck of the tasks that a shared engine can hold."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = []
        for flag, text, known in (
            ("precision", self.precision, PRECISIONS),
            ("targets", self.targets, TARGETS),
        ):
            names = text.split(",")
            faults += [unknown_name(f"--{flag}", name, known) for name in names if name not in known]
        if self.engine_backend is not None and self.engine_backend not in get_args(Library):
            faults.append(unknown_name("--engine-backend", self.engine_backend, get_args(Library)))
        if not self.batch_sizes:
            faults.append("--batch-sizes: give at least one")
        faults += [f"--batch-sizes {size}: at least 1" for size in self.batch_sizes if size < 1]
        faults += [
            f"--{flag} {value}: at least 1"
            for flag, value in (("bank-slots", self.bank_slots), ("bank-bottleneck", self.bank_bottleneck))
            if value < 1
        ]
        if not 0 <= self.max_accuracy_loss <= 100:
            faults.append(f"--max-accuracy-loss {self.max_accuracy_loss}: 0 to 100, in percentage points")
        if self.compute_capability is not None and not self.engines:
            faults.append("--compute-capability: engines are built with --targets onnx,tensorrt")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def precisions(self) -> list[Precision]:
        """The precisions asked for, each once, in the order of `Precision`."""
        given = self.precision.split(",")
        return [name for name in PRECISIONS if name in given]

    @property
    def engines(self) -> bool:
        """Whether to build engines."""
        return "tensorrt" in self.targets.split(",")


@dataclass(frozen=True)
class ExportConfig:
    """Merge and fold a tuned task, and write the graphs that are served."""

    bundle: Path
    """Folder of the run, which holds adapter.safetensors and adapter.json."""
    out: Path = Path("artifacts")
    """Folder of the store."""
    backbone_weights: Path | None = None
    """The file of backbone weights that the task was tuned with, if it was tuned with --backbone-weights."""
    parity_images: int = 24
    """Number of validation images on which the stages are compared, besides the canary. Accuracy is measured on all."""
    new_classes: bool = False
    """Replace a version with other classes. Clients will get other class names."""
    replace_upload: bool = False
    """Replace a version that was uploaded to the service. It is served until the service's next start."""

    runners: Annotated[tuple[str, ...], tyro.conf.arg(help=RUNNERS_HELP)] = (DEFAULT_RUNNER,)
    files: FileOptions = field(default_factory=FileOptions)

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = [f"--parity-images {self.parity_images}: at least 0"] if self.parity_images < 0 else []
        faults += [unknown_name("runner", name, GRAPH_RUNNERS) for name in self.runners if name not in GRAPH_RUNNERS]
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True)
class ConvertConfig:
    """Turn a LoRA adapter of PEFT, or a timm checkpoint with its head, into a bundle."""

    path: tyro.conf.Positional[Path]
    """The folder that PEFT's save_pretrained wrote, or the timm checkpoint."""
    source: Annotated[Literal["peft", "timm"], tyro.conf.arg(name="from")]
    """The library that PATH was made with."""
    name: str
    """Name of the task in the service."""
    backbone: str
    """timm's name of the ViT that was tuned, e.g. vit_base_patch16_224.augreg_in21k."""
    backbone_weights: Path | None = None
    """Load the backbone's weights before tuning from this file, of timm or of transformers, instead of timm's hub."""
    random_weights: bool = False
    """Use random backbone weights: for a trial run that downloads nothing."""
    adapter: str | None = None
    """Which of several adapters of PEFT in PATH, by its name or the folder that it lies in."""
    classes: str | None = None
    """Class names in the order of the head's outputs, separated by commas, or a file with one name per line, or a JSON
    file. Default: what lies beside PATH or the backbone's weights, else the folders of --images, else class0, class1
    and so on."""
    images: Path | None = None
    """Folder of images of the task, for the canary and for int8 calibration. If they lie in folders of their classes,
    the accuracy is computed."""
    multi_label: bool = False
    """An image may have several labels, or none: each output is answered by itself, by a sigmoid. Default: what a
    config.json or a checkpoint says."""
    min_accuracy: float | None = None
    """Refuse the task if its accuracy on --images is lower. Default: halfway between chance and 1."""
    preprocess: Path | None = None
    """A preprocessor_config.json of transformers. Default: what lies beside PATH or the backbone's weights, else the
    backbone's own preprocessing."""
    resampler: Literal["torchvision", "pillow"] | None = None
    """With what a processor of transformers resized images; its file does not say. Default: torchvision, as
    transformers does."""
    image_size: int | None = None
    """Height and width of the input in pixels. Default: the backbone's own."""
    pool: Pool | None = None
    """What the head reads: timm's global_pool. Default: what lies beside PATH says, else the backbone's own."""
    fc_norm: Literal["yes", "no"] | None = None
    """Whether the last norm stands after the pooling: timm's fc_norm. Default: as for --pool."""
    act: Activation | None = None
    """The activation of the MLPs: timm's act_layer. Default: as for --pool."""
    norm_eps: float | None = None
    """The eps of every LayerNorm. Default: as for --pool."""
    out: Path | None = None
    """Folder of the bundle. Default: runs/NAME."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = []
        if not re.fullmatch(TASK_NAME, self.name):
            faults.append(f"--name {self.name}: {TASK_NAME_RULE}")
        if self.image_size is not None and self.image_size < 1:
            faults.append(f"--image-size {self.image_size}: at least 1, in whole patches")
        if self.image_size is not None and self.preprocess is not None:
            faults.append("--image-size and --preprocess exclude each other: drop one")
        if self.min_accuracy is not None and not 0 <= self.min_accuracy <= 1:
            faults.append(f"--min-accuracy {self.min_accuracy}: 0 to 1")
        if self.min_accuracy is not None and self.images is None:
            faults.append("--min-accuracy: give --images with a folder for each class")
        if self.norm_eps is not None and not 0 < self.norm_eps < 1:
            faults.append(f"--norm-eps {self.norm_eps}: above 0 and below 1")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def model_args(self) -> ModelArgs:
        """What the flags say of the model."""
        fc_norm = None if self.fc_norm is None else self.fc_norm == "yes"
        return ModelArgs(global_pool=self.pool, fc_norm=fc_norm, act_layer=self.act, norm_eps=self.norm_eps)


@dataclass(frozen=True)
class LatencyConfig:
    """Time the variants of serving a task against the plain backbone."""

    bundle: Path | None = None
    """Folder of the run whose task is timed. Give this or --backbone."""
    backbone: str | None = None
    """Name of a plain timm ViT, DINOv3 or Swin, which is timed with random adapters."""
    backbone_weights: Path | None = None
    """Load the backbone's weights from this file instead of timm's hub."""
    random_weights: bool = False
    """Use random backbone weights, without a download. Latency depends on shapes alone."""
    bottlenecks: tuple[int, ...] = ()
    """Bottlenecks r of the random adapters, with --backbone; 64 if none is given."""
    variants: tuple[str, ...] | None = None
    """Variants to time: any of plain, control, folded, lora, unfolded, shared, shared-mixed. plain is always timed.

    Default: plain, control, folded and shared with --bundle, all with --backbone.
    """
    runners: Annotated[tuple[str, ...] | None, tyro.conf.arg(help=TIMED_HELP)] = None
    precisions: Annotated[tuple[str, ...], tyro.conf.arg(help=FILES_HELP)] = ("fp32",)
    batch_sizes: tuple[int, ...] = (1, 8)
    """Batch sizes to time."""
    seconds: float = 20.0
    """Seconds of timing per runner and batch size, for all variants together."""
    sessions: int = 5
    """How many times every graph is opened again, at least 3. More give a narrower interval."""
    threads: int = 0
    """Number of threads for one inference. 0 uses all cores."""
    out: Path = Path("artifacts/latency")
    """Folder for latency.csv, latency.md and latency.png."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = []
        if (self.bundle is None) == (self.backbone is None):
            faults.append("give either --bundle FOLDER or --backbone NAME")
        if self.bundle is not None and self.bottlenecks:
            faults.append("--bottlenecks: a bundle has its own, give them with --backbone")
        for flag, names, known in (
            ("variant", self.variants, VARIANTS),
            ("runner", self.runners, GRAPH_RUNNERS),
            ("precision", self.precisions, PRECISIONS),
        ):
            if names is not None and not names:
                faults.append(f"--{flag}s: give at least one of {', '.join(known)}")
            faults += [unknown_name(flag, name, known) for name in names or () if name not in known]
        faults += [f"--bottlenecks {r}: at least 1" for r in self.bottlenecks if r < 1]
        faults += [f"--batch-sizes {size}: at least 1" for size in self.batch_sizes if size < 1]
        if not self.batch_sizes:
            faults.append("--batch-sizes: give at least one")
        if self.sessions < 3:
            faults.append(f"--sessions {self.sessions}: at least 3, fewer give no interval")
        if self.threads < 0:
            faults.append(f"--threads {self.threads}: 0 for all cores, or how many")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def chosen_variants(self) -> list[str]:
        """The variants in the order of the table."""
        chosen = self.variants or (VARIANTS if self.bundle is None else QUICK)
        return [name for name in VARIANTS if name in chosen or name == "plain"]
