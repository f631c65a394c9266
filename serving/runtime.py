"""Chooses what runs the graphs: TensorRT for engines that fit this machine, ONNX Runtime or OpenVINO for ONNX files."""

import logging
from dataclasses import dataclass

from mosa_deploy.errors import ProviderError
from mosa_deploy.runtimes import cuda
from mosa_deploy.runtimes.cuda import device_capability
from mosa_deploy.runtimes.names import GraphRunnerName, RuntimeSetting
from mosa_deploy.runtimes.runner import check_runner
from mosa_deploy.runtimes.tensorrt import check_engines

log = logging.getLogger("mosa_deploy.serving")


@dataclass(frozen=True)
class Runtimes:
    """What a setting means on this machine."""

    graphs: GraphRunnerName
    """The runner of ONNX files."""
    capability: str | None = None
    """The compute capability of the GPU that runs engines; None if engines are not used."""

    def __str__(self) -> str:
        engines = f"TensorRT engines of {self.capability} where they fit, else " if self.capability else ""
        return f"{engines}{self.graphs}"


def choose(setting: RuntimeSetting) -> Runtimes:
    """Find what a setting needs.

    Raises:
        ProviderError: it is missing on this machine.
    """
    if setting == "auto":
        return _automatic()
    try:
        check_runner(setting)
        if setting == "tensorrt":
            return Runtimes(_for_graphs(), device_capability())
    except ProviderError as missing:
        raise ProviderError(f"MOSA_RUNTIME={setting}: {missing}") from None
    return Runtimes(setting)


def _automatic() -> Runtimes:
    if not cuda.has_driver():
        if cuda.has_gpu() and not cuda.is_hidden():
            _warn(cuda.NO_DRIVER)
        else:
            log.info("no engines are used: no NVIDIA GPU is here")
        return Runtimes("onnxruntime-cpu")
    try:
        check_engines()
    except ProviderError as missing:
        log.info("no engines are used: %s", missing)
        return Runtimes(_for_graphs())
    return Runtimes(_for_graphs(), device_capability())


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
