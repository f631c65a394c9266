"""A fake GPU for tests on machines without one: device memory is numpy arrays, and ONNX Runtime runs the engines.

Its engine files hold one line of JSON, with the batch sizes and the limits of the bank, and then the bytes of an ONNX
file.
"""

import ctypes
import json
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import DTypeLike, NDArray
from onnx import numpy_helper

from export.engine_files import engine_file
from export.engines import BankLimits, shape_range
from mosa_deploy.runtimes.cuda import Buffer
from mosa_deploy.runtimes.names import Precision
from mosa_deploy.runtimes.tensorrt_record import EngineRecord, write_record
from mosa_deploy.utils.files import sha256

VERSION, CAPABILITY = "1.7.1", "sm86"


class HostDevice:
    """A `mosa_deploy.runtimes.cuda.Device` in host memory, which counts uploads, captures and launches."""

    stream = 7

    def __init__(self) -> None:
        self.memory: dict[int, NDArray[Any]] = {}
        self.uploads: list[int] = []
        self.launches = self.captures = 0
        self.is_lost = False
        self.queue: list[Callable[[], None]] | None = None

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        array = np.full(shape, 99, dtype=dtype)
        self.memory[array.ctypes.data] = array
        return Buffer(array.ctypes.data, shape)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.zeros(shape, dtype=dtype)

    def do(self, work: Callable[[], None]) -> None:
        """Run the work now, or during a capture record it for the launch."""
        if self.queue is None:
            work()
        else:
            self.queue.append(work)

    def upload(self, buffer: Buffer, source: NDArray[Any]) -> None:
        assert source.flags.c_contiguous
        assert source.shape == buffer.shape

        def copy() -> None:
            self.uploads.append(buffer.address)
            ctypes.memmove(buffer.address, source.ctypes.data, source.nbytes)

        self.do(copy)

    def download(self, target: NDArray[Any], buffer: Buffer) -> None:
        def copy() -> None:
            ctypes.memmove(target.ctypes.data, buffer.address, target.nbytes)

        self.do(copy)

    def synchronize(self) -> None:
        assert self.queue is None

    def lost(self) -> bool:
        return self.is_lost

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        self.queue = []
        queue()
        recorded, self.queue = self.queue, None

        def launch() -> None:
            self.launches += 1
            for work in recorded:
                work()

        return launch


class HostGpu:
    """The fake device with a fake TensorRT; `install` puts both where the service looks for them."""

    def __init__(self) -> None:
        self.device = HostDevice()
        self.ran: list[int] = []
        """The batch size of each run of an engine."""
        self.__version__ = VERSION
        self.Logger = type("Logger", (), {"ERROR": 0, "__init__": lambda *_: None})
        self.Runtime = lambda logger: self

    def install(self, monkeypatch: pytest.MonkeyPatch, capability: str | None = CAPABILITY) -> None:
        runner = "mosa_deploy.runtimes.tensorrt"
        monkeypatch.setattr(f"{runner}.load_library", lambda name: self)
        monkeypatch.setattr(f"{runner}.installed", lambda: ["tensorrt_rtx"])
        monkeypatch.setattr(f"{runner}.Device", lambda: self.device)
        for place in (runner, "serving.runtime"):
            monkeypatch.setattr(f"{place}.device_capability", lambda: capability)
        monkeypatch.setattr("mosa_deploy.runtimes.cuda.has_driver", lambda: capability is not None)
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])

    def deserialize_cuda_engine(self, content: bytes) -> "OnnxEngine":
        head, _, graph = content.partition(b"\n")
        return OnnxEngine(self, json.loads(head), graph)


class OnnxEngine:
    """An ONNX file as an engine, which accepts only the shapes of its profiles."""

    def __init__(self, gpu: HostGpu, head: dict[str, Any], graph: bytes) -> None:
        self.gpu, self.sizes, self.bank = gpu, head["sizes"], BankLimits(*head["bank"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.given = {port.name: port for port in self.session.get_inputs()}
        self.output = self.session.get_outputs()[0]
        self.num_io_tensors = len(self.given) + 1

    def get_tensor_name(self, i: int) -> str:
        return str([*self.given, self.output.name][i])

    def get_tensor_mode(self, name: str) -> Any:
        return types.SimpleNamespace(name="INPUT" if name in self.given else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name={"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}[self.given[name].type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.given[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        return shape_range(name, self.get_tensor_shape(name), self.sizes[profile], self.bank)

    def create_execution_context(self) -> "OnnxContext":
        return OnnxContext(self)


class OnnxContext:
    def __init__(self, engine: OnnxEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.batch = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> None:
        self.profile = index

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        assert all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        self.batch, self.shapes[name] = self.engine.sizes[self.profile], shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if all(isinstance(size, int) for size in self.engine.output.shape[1:]):
            return self.batch, *self.engine.output.shape[1:]
        # The row of all features is as wide as the bank of queries makes it.
        zeros = {given: np.zeros(shape, dtype=np.float32) for given, shape in self.shapes.items()}
        return tuple(self.engine.session.run(None, zeros)[0].shape)

    def execute_async_v3(self, stream: int) -> bool:
        device = self.engine.gpu.device

        def work() -> None:
            self.engine.gpu.ran.append(self.batch)
            values = {name: device.memory[address] for name, address in self.addresses.items()}
            answer = values.pop(self.engine.output.name)
            answer[...] = self.engine.session.run(None, values)[0]

        device.do(work)
        return True


def write_engine(
    graph: Path,
    precision: Precision = "fp16",
    sizes: Sequence[int] = (1, 4),
    bank: tuple[int, int] | None = (8, 16),
    off: float = 0.0,
    **record: Any,
) -> Path:
    """Write a fake engine and its record beside a graph. `off` is a relative error that is added to all weights."""
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        if off and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1 + off), tensor.name))
    path = engine_file(graph, precision, record.get("capability", CAPABILITY))
    head = {"sizes": list(sizes), "bank": bank or (1, 1)}
    path.write_bytes(json.dumps(head).encode() + b"\n" + model.SerializeToString())
    fields = {
        "library": "tensorrt_rtx",
        "version": VERSION,
        "precision": precision,
        "capability": CAPABILITY,
        "batch_sizes": sizes,
        "bank": bank,
        "onnx": graph.name,
        "onnx_sha256": sha256(graph),
        "sha256": sha256(path),
        "parity": "deferred",
    }
    write_record(path, EngineRecord.model_validate(fields | record))
    return path
