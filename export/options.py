"""The options of the commands of this package, checked all at once, before anything heavy is imported."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from mosa_deploy.bundles.record import TASK_NAME
from mosa_deploy.errors import ConfigError, unknown_name
from mosa_deploy.runtimes.names import DEFAULT_RUNNER, GRAPH_RUNNERS, PRECISIONS, Precision
from mosa_deploy.runtimes.tensorrt_library import Library

TARGETS = ("onnx", "tensorrt")

PRECISION_HELP = (
    f"Of {', '.join(PRECISIONS)}, with commas. The fp32 graph is always written: the others are proved against it."
)
BACKEND_HELP = f"{' or '.join(get_args(Library))}. Default: what is installed."
RUNNERS_HELP = f"The runners whose answers must agree too, of {', '.join(GRAPH_RUNNERS)}."
TIMED_HELP = f"Of {', '.join(GRAPH_RUNNERS)}. Default: all that this machine has."

VARIANTS = ("plain", "control", "folded", "lora", "unfolded", "shared", "shared-mixed")
"""What `export.latency` times, in the order of its table; `export.variants` describes them."""

QUICK = ("plain", "control", "folded", "shared")
"""The variants of a bundle."""


@dataclass(frozen=True)
class FileOptions:
    """Precisions, targets, and what engines are built for."""

    precision: Annotated[str, tyro.conf.arg(help=PRECISION_HELP)] = "fp32"
    targets: str = "onnx"
    """Of onnx, tensorrt, with commas. Engines are built from the ONNX files, which are always written."""
    engine_backend: Annotated[str | None, tyro.conf.arg(help=BACKEND_HELP)] = None
    compute_capability: str | None = None
    """The GPU that will run the engines, e.g. sm86. Default: the GPU that is here."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """An optimisation profile each; a batch is padded to the next."""
    bank_slots: int = 64
    """The most tasks that a shared engine holds."""
    bank_bottleneck: int = 64
    """The largest bottleneck of those tasks."""

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
        if self.compute_capability is not None and not self.engines:
            faults.append("--compute-capability: engines are built with --targets onnx,tensorrt")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def precisions(self) -> list[Precision]:
        """Those asked for, each once, in the order of `Precision`."""
        given = self.precision.split(",")
        return [name for name in PRECISIONS if name in given]

    @property
    def engines(self) -> bool:
        """Whether engines are built."""
        return "tensorrt" in self.targets.split(",")


@dataclass(frozen=True)
class ExportConfig:
    """Merge and fold a tuned task, and write the graph that is served."""

    bundle: Path
    """The run's folder, with adapter.safetensors and adapter.json."""
    out: Path = Path("artifacts")
    """The store's root."""
    backbone_weights: Path | None = None
    """The file that the task was tuned on, if it was tuned on one."""
    parity_images: int = 24
    """How many of the run's validation images stages are compared on beside the canary, and accuracy is shown of."""

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
    """Make a bundle of a LoRA adapter of PEFT's, or of a timm checkpoint with its head."""

    path: tyro.conf.Positional[Path]
    """The folder that PEFT's save_pretrained wrote, or the checkpoint."""
    source: Annotated[Literal["peft", "timm"], tyro.conf.arg(name="from")]
    """What it was made with."""
    name: str
    """What the task is called where it is served."""
    backbone: str
    """timm's name of the ViT that was tuned, e.g. vit_base_patch16_224.augreg_in21k."""
    backbone_weights: Path | None = None
    """A file of its weights before tuning, of timm or of transformers, instead of timm's hub."""
    random_weights: bool = False
    """Random weights, to try the way without any."""
    classes: str | None = None
    """Names in the order of the head's outputs, a,b,c or a file with one a line; else those of a config.json there."""
    images: Path | None = None
    """A folder of images of the task, for the canary and for calibration."""
    preprocess: Path | None = None
    """A preprocessor_config.json of transformers, instead of the backbone's own way."""
    image_size: int | None = None
    """Side of the input in pixels, if it is not the backbone's own."""
    out: Path | None = None
    """The bundle's folder, runs/NAME if it is not given."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = []
        if not re.fullmatch(TASK_NAME, self.name):
            faults.append(f"--name {self.name}: lower-case letters, digits, '.', '_', '-', a letter first, 64 at most")
        if self.image_size is not None and self.image_size < 1:
            faults.append(f"--image-size {self.image_size}: at least 1, in whole patches")
        if self.image_size is not None and self.preprocess is not None:
            faults.append("--image-size and --preprocess exclude each other: drop one")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True)
class LatencyConfig:
    """Compare the ways to give a backbone a task with the plain backbone."""

    bundle: Path | None = None
    """A run's folder; or give --backbone."""
    backbone: str | None = None
    """A plain timm ViT or Swin, to time it with adapters of random values."""
    backbone_weights: Path | None = None
    random_weights: bool = False
    """Random weights, every 1-D tensor perturbed: time depends on shapes alone."""
    bottlenecks: tuple[int, ...] = ()
    """r of the random adapters, 64 if none is given; a bundle has its own."""
    variants: tuple[str, ...] | None = None
    """Of plain, control, folded, lora, unfolded, shared, shared-mixed; plain is always timed.

    Default: plain, control, folded and shared of a bundle, all of a backbone.
    """
    runners: Annotated[tuple[str, ...] | None, tyro.conf.arg(help=TIMED_HELP)] = None
    batch_sizes: tuple[int, ...] = (1, 8)
    seconds: float = 20.0
    """Time for the rounds of each runner and batch size, for all variants together."""
    sessions: int = 5
    """How often every graph is opened anew."""
    threads: int = 0
    """Cores for one inference; 0 takes all."""
    out: Path = Path("artifacts/latency")
    """Where latency.csv, latency.md and latency.png go."""

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
