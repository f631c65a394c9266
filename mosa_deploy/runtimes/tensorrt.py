"""TensorRT: runs the engines of either library behind the protocol of `mosa_deploy.runtimes.runner`.

An engine has one optimisation profile per batch size, and a batch is padded with zeros to the smallest size that holds
it. Each size has its own context, its own buffers, and one CUDA graph of copies and kernels. A bank is copied to the
device when it is bound, and a slot when it has changed; a run copies neither.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.record import RECORD
from mosa_deploy.errors import ConfigError, ParityError, ProviderError, StoreError
from mosa_deploy.runtimes.cuda import Buffer, Device, device_capability
from mosa_deploy.runtimes.names import CANARY_TOLERANCE
from mosa_deploy.runtimes.tensorrt_library import INSTALL, installed, load_library
from mosa_deploy.runtimes.tensorrt_record import AGAIN, EngineRecord, check_engine, read_record

DTYPES = {"FLOAT": np.float32, "INT64": np.int64}
"""The types of inputs, by TensorRT's names."""


def check_engines() -> None:
    """Check that this machine can run engines.

    Raises:
        ProviderError: TensorRT, cuda-bindings or a GPU is missing.
    """
    if not installed():
        raise ProviderError(f"no TensorRT is installed: {INSTALL}")
    if device_capability() is None:
        raise ProviderError("no NVIDIA GPU is here: run the ONNX files")


def open_engine(path: Path) -> "EngineRunner":
    """Open an engine on the first GPU. If no GPU has run it yet and its bundle lies beside it, it is proved first.

    Raises:
        StoreError: the engine or its record is missing or altered.
        ProviderError: the library's version or the GPU is not the engine's, or is missing.
        ParityError: the engine misses its canary.
    """
    record = read_record(path)
    runner = load_engine(path, record)
    if record.parity == "deferred" and (path.parent / RECORD).is_file():
        prove(runner, Bundle.load(path.parent))
    return runner


def load_engine(path: Path, record: EngineRecord) -> "EngineRunner":
    """Open the engine that `record` describes, without proving it.

    Raises:
        ProviderError: the library's version or the GPU is not the engine's, or is missing.
    """
    library = load_library(record.library)
    check_engine(path, record, str(library.__version__), device_capability())
    logger = library.Logger(library.Logger.ERROR)
    engine = library.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ProviderError(f"{path} is refused by {record.library} {record.version}: {AGAIN}")
    return EngineRunner(engine, Device(), record, str(path))


def prove(runner: "EngineRunner", bundle: Bundle) -> None:
    """Run the bundle's canary, as many images at a time as the engine takes.

    Raises:
        ParityError: the probabilities are not those that were recorded.
    """
    inputs, size = bundle.canary.inputs(bundle.record.preprocess), runner.sizes[-1]
    logits = np.concatenate([runner.run(inputs[i : i + size]) for i in range(0, len(inputs), size)])
    error = bundle.canary.error(bundle.record.scores(logits))
    tolerance = CANARY_TOLERANCE[runner.record.precision]
    if not error <= tolerance:
        raise ParityError(
            f"{runner.name} misses its canary's probabilities by {error:.1e}, above {tolerance:.0e}: {AGAIN}, or run"
            f" {runner.record.onnx}"
        )


class EngineRunner:
    """Runs one engine; threads take turns."""

    def __init__(self, engine: Any, device: Device, record: EngineRecord, name: str) -> None:
        """`engine` is TensorRT's, with a profile for each of the record's batch sizes."""
        self.engine, self.device, self.record, self.name = engine, device, record, name
        self.precision, self.sizes = record.precision, record.batch_sizes
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name).name == "INPUT"]
        (self.output,) = (name for name in names if name not in self.inputs)
        self.bound: dict[str, Buffer] = {}
        self.plans: dict[int, Plan] = {}
        self.lock = threading.Lock()

    def bind(self, tensors: Mapping[str, Array]) -> None:
        """Copy inputs that stay from run to run to the device, by name.

        Raises:
            ProviderError: an input is larger than the engine was built for.
        """
        for name, tensor in tensors.items():
            self._check_bank(name, tensor.shape)
        with self.lock:
            for name, tensor in tensors.items():
                if name not in self.bound or self.bound[name].shape != tensor.shape:
                    self.bound[name] = self.device.allocate(tensor.shape, tensor.dtype)
                    # Contexts and captured graphs hold the old addresses.
                    self.plans.clear()
            contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
            for name, tensor in contiguous.items():
                self.device.upload(self.bound[name], tensor)
            self.device.synchronize()

    def refresh(self, tensors: Mapping[str, Array], slots: Sequence[int]) -> None:
        """Copy these slots of what is bound to the device again."""
        with self.lock:
            # Queued copies read these arrays until `synchronize`.
            sources = [
                (self.bound[name].part(slot, tensor[slot].nbytes), np.ascontiguousarray(tensor[slot]))
                for name, tensor in tensors.items()
                for slot in slots
            ]
            for slot_memory, source in sources:
                self.device.upload(slot_memory, source)
            self.device.synchronize()

    def _check_bank(self, name: str, shape: tuple[int, ...]) -> None:
        most = tuple(self.engine.get_tensor_profile_shape(name, 0)[2])
        if any(size > limit for size, limit in zip(shape, most, strict=True)):
            raise ProviderError(
                f"{self.name} takes {name} up to {most}, the bank has {shape}: {AGAIN} and larger --bank-slots or"
                " --bank-bottleneck"
            )

    def device_lost(self) -> bool:
        """See `Runner`."""
        return self.device.lost()

    def release(self) -> None:
        """See `Runner`. An engine has its memory for the largest batch once and for all."""

    def run(self, *inputs: NDArray[Any]) -> Array:
        """Run the engine on the inputs that are not bound, given in the graph's order; returns (B, ...).

        Raises:
            ConfigError: the batch is larger than the largest profile.
        """
        free = [name for name in self.inputs if name not in self.bound]
        given = dict(zip(free, inputs, strict=True))
        batch = len(inputs[0])
        size = next((size for size in self.sizes if size >= batch), None)
        if size is None:
            sizes = ", ".join(map(str, self.sizes))
            raise ConfigError(
                f"{self.name}: a batch of {batch} is outside its profiles ({sizes}): {AGAIN} --batch-sizes ... {batch}"
            )
        with self.lock:
            if size not in self.plans:
                self.plans[size] = Plan(self, size, free)
            return self.plans[size].run(given)[:batch].copy()


class Plan:
    """Everything that one batch size needs: a context, pinned and device buffers, and the captured graph."""

    def __init__(self, runner: EngineRunner, size: int, free: list[str]) -> None:
        engine, device = runner.engine, runner.device
        self.device, self.name = device, runner.name
        self.launch: Callable[[], None] | None = None
        self.context = engine.create_execution_context()
        self.context.set_optimization_profile_async(runner.sizes.index(size), device.stream)
        self.pinned: dict[str, NDArray[Any]] = {}
        self.buffers = dict(runner.bound)
        for name in free:
            shape, dtype = (size, *tuple(engine.get_tensor_shape(name))[1:]), DTYPES[engine.get_tensor_dtype(name).name]
            self.pinned[name] = device.pinned(shape, dtype)
            self.buffers[name] = device.allocate(shape, dtype)
        for name, buffer in self.buffers.items():
            self.context.set_input_shape(name, buffer.shape)
            self.context.set_tensor_address(name, buffer.address)
        shape = tuple(self.context.get_tensor_shape(runner.output))
        self.answer, self.result = device.pinned(shape, np.float32), device.allocate(shape, np.float32)
        self.context.set_tensor_address(runner.output, self.result.address)

    def run(self, given: Mapping[str, NDArray[Any]]) -> Array:
        """Run inputs of at most this size. The answer has this size, and the next run overwrites it."""
        for name, value in given.items():
            self.pinned[name][: len(value)] = value
            self.pinned[name][len(value) :] = 0
        if self.launch is None:
            # The first run loads kernels and switches the profile, neither of which may happen in a capture.
            self._queue()
            self.device.synchronize()
            self.launch = self.device.capture(self._queue)
        else:
            self.launch()
            self.device.synchronize()
        return self.answer

    def _queue(self) -> None:
        for name, array in self.pinned.items():
            self.device.upload(self.buffers[name], array)
        if not self.context.execute_async_v3(self.device.stream):
            raise StoreError(f"{self.name} did not run: {AGAIN}")
        self.device.download(self.answer, self.result)
