"""Which files an export writes: the flags of `python -m export` that say so, checked all at once."""

from dataclasses import dataclass
from typing import cast, get_args

from mosa_deploy.errors import ConfigError, unknown_name
from mosa_deploy.runtimes.tensorrt_library import Library
from mosa_deploy.runtimes.tensorrt_record import Precision

TARGETS = ("onnx", "tensorrt")


@dataclass(frozen=True)
class FileOptions:
    """Precisions, targets, and what engines are built for."""

    precision: str = "fp32"
    """Of fp32, fp16, int8, with commas. The fp32 graph is always written: the others are proved against it."""
    targets: str = "onnx"
    """Of onnx, tensorrt, with commas. Engines are built from the ONNX files, which are always written."""
    engine_backend: str | None = None
    """tensorrt or tensorrt_rtx. Default: what is installed."""
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
            ("precision", self.precision, get_args(Precision)),
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
        return [cast(Precision, name) for name in get_args(Precision) if name in given]

    @property
    def engines(self) -> bool:
        """Whether engines are built."""
        return "tensorrt" in self.targets.split(",")
