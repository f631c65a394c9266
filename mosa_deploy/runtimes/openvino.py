"""OpenVINO: graphs of both lanes on CPUs, in fp32, or in bf16 if the CPU has it.

The library comes with the extra `openvino`, and is imported when a runner is opened.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ProviderError, StoreError
from mosa_deploy.graphs.bank import zero_pages
from mosa_deploy.runtimes.names import OpenVinoPrecision
from mosa_deploy.runtimes.pool import Pool

Halves = NDArray[np.uint16]
"""The bits of numbers in bf16, which numpy does not know."""

# fp32 is a hint too: without it OpenVINO takes bf16 on a CPU that has it.
HINTS: dict[OpenVinoPrecision, str] = {"fp32": "f32", "bf16": "bf16"}


OLDEST = 2026
"""The year of the oldest release that was tried."""

INSTALL = "pip install 'mosa-deploy[openvino]'"


def load_openvino(precision: OpenVinoPrecision = "fp32") -> Any:
    """Import the library, and check the precision.

    Raises:
        ProviderError: the library is not installed or too old, or the CPU lacks the precision.
    """
    try:
        openvino = importlib.import_module("openvino")
    except ImportError:
        raise ProviderError(f"OpenVINO is not installed: {INSTALL}") from None
    version = str(openvino.__version__)
    if not version[:4].isdecimal() or int(version[:4]) < OLDEST:
        raise ProviderError(f"OpenVINO {version} is installed, {OLDEST}.0 or later is needed: {INSTALL}")
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise ProviderError("this CPU has no bf16: use OpenVINO in fp32")
    return openvino


class OpenVinoRunner:
    """Runs a graph with OpenVINO on the CPU, `streams` times at once: each has its share of the threads.

    `threads` of 0 takes every core.
    """

    sizes = None

    def __init__(self, path: Path, precision: OpenVinoPrecision = "fp32", threads: int = 0, streams: int = 1) -> None:
        """Raises ProviderError as `load_openvino`, StoreError if the file is missing or not a graph."""
        self.openvino = load_openvino(precision)
        if not path.is_file():
            raise StoreError(f"{path}: no such file; write it with `mosa export`")
        hints = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "NUM_STREAMS": streams,
        }
        core = self.openvino.Core()
        try:
            model = core.read_model(path)
            self.halved = gather_bf16(model) if precision == "bf16" else frozenset()
            self.compiled = core.compile_model(model, "CPU", hints)
        except RuntimeError as error:
            raise StoreError(f"{path} cannot be loaded: {_reason(error)}; export it again") from error
        self.precision = precision
        self.inputs = [port.any_name for port in self.compiled.inputs]
        self.bound: dict[str, Array | Halves] = {}
        # A request serves one thread at a time.
        self.requests: Pool[Any] = Pool(self._request)

    def bind(self, tensors: Mapping[str, Array]) -> None:
        """Give inputs that stay from run to run, by name. They are read where they lie; banks are copied to bf16."""
        self.bound = {name: halves(tensor) if name in self.halved else tensor for name, tensor in tensors.items()}
        self.requests = Pool(self._request)

    def _request(self) -> Any:
        request = self.compiled.create_infer_request()
        for name, tensor in self.bound.items():
            self._set(request, name, tensor)
        return request

    def refresh(self, tensors: Mapping[str, Array], slots: Sequence[int]) -> None:
        """Write these slots of the banks in bf16 again, in place. Other inputs are read where they lie."""
        for name in self.halved & self.bound.keys():
            for slot in slots:
                self.bound[name][slot] = to_bf16(tensors[name][slot])

    def device_lost(self) -> bool:
        """See `Runner`: a CPU is not lost."""
        return False

    def release(self) -> None:
        """See `Runner`."""
        self.compiled.release_memory()

    def run(self, *inputs: NDArray[Any]) -> Array:
        """Run the graph on the inputs that are not bound, given in the graph's order."""
        given = [np.ascontiguousarray(value) for value in inputs]
        with self.requests.one() as request:
            for name, value in zip((name for name in self.inputs if name not in self.bound), given, strict=True):
                self._set(request, name, value)
            request.infer()
            return np.array(request.get_output_tensor(0).data, dtype=np.float32)

    def _set(self, request: Any, name: str, value: NDArray[Any]) -> None:
        if name in self.halved:
            tensor = self.openvino.Tensor(value, self.openvino.Shape(value.shape), self.openvino.Type.bf16)
        else:
            tensor = self.openvino.Tensor(value, shared_memory=True)
        request.set_tensor(name, tensor)


def gather_bf16(model: Any) -> frozenset[str]:
    """Let a model read in bf16 the inputs that are only gathered, and turn what is gathered into fp32.

    Else the whole of a bank would be rounded in each run, which takes longer the more tasks it holds. Returns the names
    of these inputs.
    """
    openvino, operators = importlib.import_module("openvino"), importlib.import_module("openvino.opset13")
    found = []
    for parameter in model.get_parameters():
        readers = [target.get_node() for target in parameter.output(0).get_target_inputs()]
        if parameter.get_element_type() != openvino.Type.f32 or not readers:
            continue
        if not all(node.get_type_name().startswith("Gather") for node in readers):
            continue
        parameter.set_element_type(openvino.Type.bf16)
        for node in readers:
            users = node.output(0).get_target_inputs()
            gathered = operators.convert(node, openvino.Type.f32)
            for user in users:
                user.replace_source_output(gathered.output(0))
        found.append(parameter.output(0).get_any_name())
    model.validate_nodes_and_infer_types()
    return frozenset(found)


def halves(tensor: Array) -> Halves:
    """A bank (T, ...) in bf16. Slots of zeros are not written, so that they take no memory."""
    copy = zero_pages(tensor.shape, np.uint16)
    for slot in range(len(tensor)):
        if tensor[slot].any():
            copy[slot] = to_bf16(tensor[slot])
    return copy


def to_bf16(values: Array) -> Halves:
    """The bits of finite numbers, rounded to the nearest bf16."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _reason(error: RuntimeError) -> str:
    """The last line of OpenVINO's message; those before it name places in its source."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
