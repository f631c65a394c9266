"""Runners: one way to run a graph, whatever the runtime behind it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mosa_deploy.bank import Bank
from mosa_deploy.errors import ProviderError, StoreError
from mosa_deploy.preprocess import Array

Provider = Literal["cpu", "cuda"]

EXECUTION_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Runner(Protocol):
    """Runs one graph."""

    def run(self, images: Array) -> Array:
        """(B, 3, H, W) -> logits (B, K)."""
        ...


def open_session(
    path: Path, provider: Provider = "cpu", threads: int = 0, spinning: bool = True
) -> onnxruntime.InferenceSession:
    """A session on one execution provider; one that is not there is an error, never a silent CPU.

    `threads` of 0 takes one for each core; without `spinning` they sleep as soon as they have nothing to do.

    Raises:
        ProviderError: the provider did not start.
        StoreError: the file is missing or not a graph.
    """
    if not path.is_file():
        raise StoreError(f"{path}: no such file; write it with `python -m export`")
    wanted = EXECUTION_PROVIDERS[provider]
    if provider == "cuda":
        onnxruntime.preload_dlls()
    if wanted not in onnxruntime.get_available_providers():
        raise ProviderError(f"{wanted} is not in this onnxruntime: install onnxruntime-gpu, or use provider 'cpu'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[wanted])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
        raise StoreError(f"{path} cannot be loaded: {str(error).splitlines()[0]}; export it again") from error
    if wanted not in session.get_providers():
        raise ProviderError(f"{wanted} did not start, its libraries are missing: use provider 'cpu'")
    return session


class OnnxRunner:
    """A graph of one task by ONNX Runtime; the arguments are those of `open_session`."""

    def __init__(self, path: Path, provider: Provider = "cpu", threads: int = 0, spinning: bool = True) -> None:
        self.session = open_session(path, provider, threads, spinning)
        self.input = self.session.get_inputs()[0].name

    def run(self, images: Array) -> Array:
        """(B, 3, H, W) -> logits (B, K)."""
        outputs: Sequence[object] = self.session.run(None, {self.input: images})
        return np.asarray(outputs[0], dtype=np.float32)


class SharedRunner:
    """The shared graph by ONNX Runtime, its banks bound once instead of fed at each call.

    On the CPU the graph reads the bank's own memory, and a slot that is written is there at once. On CUDA the banks are
    copied to the device when they have changed.
    """

    def __init__(
        self, path: Path, bank: Bank, provider: Provider = "cpu", threads: int = 0, spinning: bool = True
    ) -> None:
        self.session = open_session(path, provider, threads, spinning)
        self.images, self.slots = (given.name for given in self.session.get_inputs()[:2])
        self.output = self.session.get_outputs()[0].name
        self.bank, self.provider = bank, provider
        self._bind()

    def _stamp(self) -> int:
        return self.bank.growths if self.provider == "cpu" else self.bank.changes

    def _bind(self) -> None:
        self.binding = self.session.io_binding()
        # What is bound must outlive the binding.
        self.values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(tensor, self.provider, 0)
            for name, tensor in self.bank.tensors.items()
        }
        for name, value in self.values.items():
            self.binding.bind_ortvalue_input(name, value)
        self.bound = self._stamp()

    def run(self, images: Array, slots: NDArray[np.int64]) -> Array:
        """Images (B, 3, H, W), the slot of each (B,) -> features (B, C)."""
        if self.bound != self._stamp():
            self._bind()
        self.binding.bind_cpu_input(self.images, np.ascontiguousarray(images))
        self.binding.bind_cpu_input(self.slots, np.ascontiguousarray(slots))
        self.binding.bind_output(self.output, "cpu")
        self.session.run_with_iobinding(self.binding)
        return np.asarray(self.binding.copy_outputs_to_cpu()[0], dtype=np.float32)
