"""What MOSA_RUNTIME and MOSA_PRECISION mean on this machine: which runners, and which files they are given."""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.bundles.store_layout import format_file
from mosa_deploy.errors import ConfigError, ProviderError
from mosa_deploy.runtimes import cuda
from mosa_deploy.runtimes.cuda import device_capability
from mosa_deploy.runtimes.names import (
    ARITHMETIC_OF_FILES,
    Arithmetic,
    GraphRunnerName,
    Precision,
    PrecisionSetting,
    RuntimeSetting,
)
from mosa_deploy.runtimes.runner import check_runner
from mosa_deploy.runtimes.tensorrt import check_engines

log = logging.getLogger("mosa_deploy.serving")

NEEDS: dict[PrecisionSetting, str] = {
    "fp32": "any other runtime",
    "bf16": "OpenVINO on a CPU that has bf16",
    "fp16": "an NVIDIA GPU",
    "int8": "a CPU, or engines of TensorRT",
}
"""Precision -> what computes in it."""


@dataclass(frozen=True)
class Mode:
    """A runner of ONNX files, and the format of the files that it is given."""

    runner: GraphRunnerName
    format: Precision

    @property
    def precision(self) -> Arithmetic:
        """The precision in which it computes."""
        return ARITHMETIC_OF_FILES[self.runner][self.format]

    def file(self, graph: str) -> str:
        """The name of the file that it takes for an fp32 graph."""
        return format_file(Path(graph), self.format).name

    def meets(self, setting: PrecisionSetting) -> bool:
        """Whether it computes in the precision that a setting names. TF32 is what CUDA makes of fp32."""
        return setting in ("auto", self.precision) or (setting == "fp32" and self.precision == "tf32")

    def __str__(self) -> str:
        return f"{self.runner} in {self.precision}"


@dataclass(frozen=True)
class Runtimes:
    """What the settings mean on this machine."""

    contenders: tuple[Mode, ...]
    """The modes that the settings allow, the one that is expected to be the fastest first."""
    last: Mode
    """The mode of fp32 files, which every task has: it serves where no other is proved."""
    capability: str | None = None
    """The compute capability of the GPU that runs engines; None if engines are not used."""
    precision: PrecisionSetting = "auto"
    unmeasured: tuple[Mode, ...] = ()
    """The contenders that the settings name, so that they are tried before the last even if nothing was measured."""

    def __str__(self) -> str:
        engines = f"TensorRT engines of {self.capability} where they fit, else " if self.capability else ""
        runners = dict.fromkeys(mode.runner for mode in (*self.contenders, self.last))
        return f"{engines}{' or '.join(runners)}"


def choose(runtime: RuntimeSetting, precision: PrecisionSetting = "auto") -> Runtimes:
    """Find what the settings need.

    Raises:
        ProviderError: it is missing on this machine.
        ConfigError: the runtime does not compute in that precision.
    """
    if (runtime, precision) == ("openvino", "bf16"):
        runtime = "openvino-bf16"
    runners, capability = _runners(runtime, precision)
    modes = [Mode(runner, file) for runner in runners for file in ARITHMETIC_OF_FILES[runner]]
    contenders = tuple(mode for mode in modes if mode.meets(precision) and runtime in ("auto", "tensorrt", mode.runner))
    engines = capability is not None and precision in ("fp16", "int8")
    if not (contenders or engines):
        raise ConfigError(
            f"MOSA_PRECISION={precision}: {runtime if runtime != 'auto' else runners[-1]} does not compute in it, it"
            f" takes {NEEDS[precision]}: leave one of MOSA_PRECISION and MOSA_RUNTIME out, or change it"
        )
    named = contenders
    if precision in ("auto", "fp32"):
        named = (Mode("openvino-bf16", "fp32"),) if runtime == "openvino-bf16" else ()
    return Runtimes(contenders, Mode(runners[-1], "fp32"), capability, precision, named)


def _runners(runtime: RuntimeSetting, precision: PrecisionSetting) -> tuple[Sequence[GraphRunnerName], str | None]:
    """The runners of ONNX files, the last of which is the last resort, and the capability of the GPU for engines."""
    if runtime == "auto" and precision == "bf16":
        _require("openvino-bf16", f"MOSA_PRECISION={precision}")
        return ("openvino-bf16", "onnxruntime-cpu"), None
    if runtime == "auto":
        return _automatic()
    _require(runtime, f"MOSA_RUNTIME={runtime}")
    if runtime == "tensorrt":
        return (_for_graphs(),), device_capability()
    return ("openvino-bf16", "openvino") if runtime == "openvino-bf16" else (runtime,), None


def _require(runner: str, setting: str) -> None:
    """Raises ProviderError, which names the setting, if a runner cannot be used here."""
    try:
        check_runner(runner)
    except ProviderError as missing:
        raise ProviderError(f"{setting}: {missing}") from None


def _automatic() -> tuple[Sequence[GraphRunnerName], str | None]:
    if not cuda.has_driver():
        if cuda.has_gpu() and not cuda.is_hidden():
            _warn(cuda.NO_DRIVER)
        else:
            log.info("no engines are used: no NVIDIA GPU is here")
        return (*_openvino(), "onnxruntime-cpu"), None
    try:
        check_engines()
    except ProviderError as missing:
        log.info("no engines are used: %s", missing)
        return (_for_graphs(),), None
    return (_for_graphs(),), device_capability()


def _openvino() -> Sequence[GraphRunnerName]:
    """The runners of OpenVINO that work here; none if it is not installed, and a line if it cannot be used."""
    if importlib.util.find_spec("openvino") is None:
        return ()
    try:
        check_runner("openvino")
    except ProviderError as fault:
        log.warning("OpenVINO is not used: %s", fault)
        return ()
    try:
        check_runner("openvino-bf16")
    except ProviderError:
        return ("openvino",)
    return ("openvino-bf16", "openvino")


def _for_graphs() -> GraphRunnerName:
    """ONNX Runtime on CUDA if that works here, else on the CPU, which is said where there is a GPU."""
    if not cuda.has_driver():
        return "onnxruntime-cpu"
    try:
        check_runner("onnxruntime-cuda")
    except ProviderError as fault:
        if cuda.has_gpu() and not cuda.is_hidden():
            _warn(str(fault))
        return "onnxruntime-cpu"
    return "onnxruntime-cuda"


def _warn(reason: str) -> None:
    """Say why a GPU is not used, and how to say that this is meant."""
    log.warning("an NVIDIA GPU is here, but graphs run on the CPU: %s; MOSA_RUNTIME=onnxruntime-cpu if meant", reason)
