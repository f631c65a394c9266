"""Where and how training steps are computed."""

from dataclasses import dataclass, field

import torch

from mosa_deploy.errors import ConfigError
from mosa_deploy.runtimes import cuda
from training.ranks import Ranks, is_cpu_wanted
from training.tune_options import ExecutionOptions
from training.workers import Workers


@dataclass(frozen=True)
class Computing:
    """By what steps are computed, and how; but for rounding, the result does not depend on it."""

    device: str = "cpu"
    precision: str = "fp32"
    """fp32 or bf16 for the forward passes of training. Weights and everything else are in fp32."""
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    ranks: Ranks = field(default_factory=Ranks)
    """The processes that share every batch."""
    workers: Workers = field(default_factory=lambda: Workers(0))
    """Processes that change images ahead of the steps; without them a step waits for its images."""

    def autocast(self) -> torch.autocast:
        """The context of training's forward passes."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


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
