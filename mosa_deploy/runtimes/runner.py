"""Runners: one way to run a graph of either lane, whatever the runtime behind it."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mosa_deploy.bundles.canary import Arithmetic
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ConfigError, ProviderError, StoreError, unknown_name
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.openvino import OpenVinoRunner, load_openvino
from mosa_deploy.runtimes.tensorrt import check_engines, open_engine

Provider = Literal["cpu", "cuda"]
GraphRunnerName = Literal["onnxruntime-cpu", "onnxruntime-cuda", "openvino", "openvino-bf16"]
"""Those that run ONNX files; `tensorrt` runs engines, of either library."""

RunnerName = Literal[GraphRunnerName, "tensorrt"]

FOR_TENSORRT = "int8-tensorrt"
"""In the names of files whose eight-bit weights overflow ONNX Runtime's integer kernels on CPUs without VNNI."""

EXECUTION_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

PROVIDER_PRECISIONS: dict[Provider, Arithmetic] = {"cpu": "fp32", "cuda": "tf32"}
"""ONNX Runtime lets CUDA round the factors of products to TF32."""


class Runner(Protocol):
    """Runs one graph, of a task or shared; several threads may call it."""

    @property
    def precision(self) -> Arithmetic:
        """What it computes in, given a graph in fp32."""
        ...

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The batches that it was built for, ascending; it pads others. None for any."""
        ...

    def bind(self, tensors: Mapping[str, Array]) -> None:
        """Give inputs that stay from run to run, by name."""
        ...

    def refresh(self, tensors: Mapping[str, Array], slots: Sequence[int]) -> None:
        """Say that what is bound has changed in these places of its first axis."""
        ...

    def run(self, *inputs: NDArray[Any]) -> Array:
        """The other inputs, in the graph's order.

        Of a task: images (B, 3, H, W) -> logits (B, K). Shared: images, slots (B,) int64 -> features (B, C).
        """
        ...


def check_runner(name: str) -> None:
    """Look for a runner's runtime, before there is a graph.

    Raises:
        ConfigError: an unknown name.
        ProviderError: the runtime, or what it needs, is not here.
    """
    match name:
        case "onnxruntime-cpu" | "onnxruntime-cuda":
            execution_provider("cuda" if name == "onnxruntime-cuda" else "cpu")
        case "openvino" | "openvino-bf16":
            load_openvino("bf16" if name == "openvino-bf16" else "fp32")
        case "tensorrt":
            check_engines()
        case _:
            raise ConfigError(unknown_name("runner", name, get_args(RunnerName)))


def open_runner(path: Path, name: RunnerName = "onnxruntime-cpu", threads: int = 0, spinning: bool = True) -> "Runner":
    """A graph, or an engine, loaded by the runner of that name; the other arguments are those of `open_session`.

    Raises:
        ProviderError: the runtime is not here, or did not start, or is not the engine's.
        StoreError: the file is missing or not a graph, or not an engine.
        ParityError: an engine misses the canary beside it.
    """
    match name:
        case "onnxruntime-cpu":
            return OnnxRunner(path, "cpu", threads, spinning)
        case "onnxruntime-cuda":
            return OnnxRunner(path, "cuda", threads, spinning)
        case "openvino":
            return OpenVinoRunner(path, "fp32", threads)
        case "openvino-bf16":
            return OpenVinoRunner(path, "bf16", threads)
        case "tensorrt":
            return open_engine(path)


def execution_provider(provider: Provider) -> str:
    """ONNX Runtime's name of a provider, which starts.

    Raises:
        ProviderError: the installed onnxruntime was built without it, or it does not start.
    """
    wanted = EXECUTION_PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise ProviderError(f"{wanted} is not in this onnxruntime: install onnxruntime-gpu, or run on the CPU")
    if provider == "cuda":
        onnxruntime.preload_dlls()
        try:
            # It is listed wherever onnxruntime-gpu is installed; only memory on the device shows that it is there.
            onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, dtype=np.float32), "cuda", 0)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
            raise ProviderError(
                f"{wanted} did not start, CUDA's libraries or a GPU are missing: run on the CPU"
            ) from error
    return wanted


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
    wanted = execution_provider(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.log_severity_level = 3
    if FOR_TENSORRT in path.name:
        # Its pairs of Q and DQ run as they stand, which is what TensorRT computes.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[wanted])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
        raise StoreError(f"{path} cannot be loaded: {str(error).splitlines()[0]}; export it again") from error
    if wanted not in session.get_providers():
        raise ProviderError(f"{wanted} did not start, its libraries are missing: run on the CPU")
    return session


class OnnxRunner:
    """A graph by ONNX Runtime; the arguments are those of `open_session`.

    On the CPU, inputs that are bound are read where they lie; on CUDA they are copied to the device.
    """

    sizes = None

    def __init__(self, path: Path, provider: Provider = "cpu", threads: int = 0, spinning: bool = True) -> None:
        self.session = open_session(path, provider, threads, spinning)
        self.provider, self.precision = provider, PROVIDER_PRECISIONS[provider]
        self.inputs = [given.name for given in self.session.get_inputs()]
        self.output = self.session.get_outputs()[0].name
        self.bound: dict[str, onnxruntime.OrtValue] = {}
        self.binding, self.lock = self.session.io_binding(), threading.Lock()

    def bind(self, tensors: Mapping[str, Array]) -> None:
        """Give inputs that stay from run to run, by name."""
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(tensor, self.provider, 0) for name, tensor in tensors.items()
        }
        with self.lock:
            for name, value in values.items():
                self.binding.bind_ortvalue_input(name, value)
            # What is bound must outlive the binding.
            self.bound = values

    def refresh(self, tensors: Mapping[str, Array], slots: Sequence[int]) -> None:
        """Copy what is bound to the device again: an OrtValue is written as a whole."""
        if self.provider == "cuda":
            self.bind(tensors)

    def run(self, *inputs: NDArray[Any]) -> Array:
        """The inputs that are not bound, in the graph's order -> its output."""
        given = dict(zip((name for name in self.inputs if name not in self.bound), inputs, strict=True))
        if not self.bound:
            return np.asarray(self.session.run(None, given)[0], dtype=np.float32)
        # A session serves many threads at once, a binding one.
        with self.lock:
            for name, value in given.items():
                self.binding.bind_cpu_input(name, np.ascontiguousarray(value))
            self.binding.bind_output(self.output, "cpu")
            self.session.run_with_iobinding(self.binding)
            return np.asarray(self.binding.copy_outputs_to_cpu()[0], dtype=np.float32)


class SharedRunner:
    """The shared graph, its banks bound once instead of fed at each call.

    A slot that was written or cleared is seen by the next run: a runner that holds a copy is told which.
    """

    def __init__(
        self,
        path: Path,
        bank: Bank,
        name: RunnerName = "onnxruntime-cpu",
        threads: int = 0,
        spinning: bool = True,
    ) -> None:
        """The arguments beside the bank are those of `open_runner`."""
        self.runner, self.bank = open_runner(path, name, threads, spinning), bank
        self._bind()

    def _bind(self) -> None:
        self.growths, self.changes = self.bank.growths, self.bank.changes
        self.runner.bind(self.bank.tensors)

    def _refresh(self) -> None:
        slots, self.changes = self.bank.changed_since(self.changes), self.bank.changes
        self.runner.refresh(self.bank.tensors, slots)

    def run(self, images: Array, slots: NDArray[np.int64]) -> Array:
        """Images (B, 3, H, W), the slot of each (B,) -> features (B, C)."""
        if self.growths != self.bank.growths:
            self._bind()
        elif self.changes != self.bank.changes:
            self._refresh()
        return self.runner.run(images, slots)
