"""OpenVINO: graphs of both lanes on CPUs, in fp32, or in bf16 if the CPU has it.

The library comes with the extra `openvino`, and is imported when a runner is opened.
"""

import importlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ProviderError, StoreError
from mosa_deploy.runtimes.names import OpenVinoPrecision

# fp32 is a hint too: without it OpenVINO takes bf16 on a CPU that has it.
HINTS: dict[OpenVinoPrecision, str] = {"fp32": "f32", "bf16": "bf16"}


def load_openvino(precision: OpenVinoPrecision = "fp32") -> Any:
    """Import the library, and check the precision.

    Raises:
        ProviderError: the library is not installed, or the CPU lacks the precision.
    """
    try:
        openvino = importlib.import_module("openvino")
    except ImportError:
        raise ProviderError("OpenVINO is not installed: pip install 'mosa-deploy[openvino]'") from None
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise ProviderError("this CPU has no bf16: use OpenVINO in fp32")
    return openvino


class OpenVinoRunner:
    """Runs a graph with OpenVINO on the CPU; `threads` of 0 takes every core."""

    sizes = None

    def __init__(self, path: Path, precision: OpenVinoPrecision = "fp32", threads: int = 0) -> None:
        """Raises ProviderError as `load_openvino`, StoreError if the file is missing or not a graph."""
        self.openvino = load_openvino(precision)
        if not path.is_file():
            raise StoreError(f"{path}: no such file; write it with `mosa export`")
        hints = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self.compiled = self.openvino.Core().compile_model(path, "CPU", hints)
        except RuntimeError as error:
            raise StoreError(f"{path} cannot be loaded: {_reason(error)}; export it again") from error
        self.precision = precision
        self.inputs = [port.any_name for port in self.compiled.inputs]
        self.bound: dict[str, Array] = {}
        self.request, self.lock = self.compiled.create_infer_request(), threading.Lock()

    def bind(self, tensors: Mapping[str, Array]) -> None:
        """Give inputs that stay from run to run, by name. They are read where they lie."""
        with self.lock:
            for name, tensor in tensors.items():
                self._set(name, tensor)
            # What is bound must outlive the request.
            self.bound = dict(tensors)

    def refresh(self, tensors: Mapping[str, Array], slots: Sequence[int]) -> None:
        """Nothing to do: bound inputs are read where they lie."""

    def device_lost(self) -> bool:
        """See `Runner`: a CPU is not lost."""
        return False

    def run(self, *inputs: NDArray[Any]) -> Array:
        """Run the graph on the inputs that are not bound, given in the graph's order."""
        given = [np.ascontiguousarray(value) for value in inputs]
        # A request serves one thread at a time.
        with self.lock:
            for name, value in zip((name for name in self.inputs if name not in self.bound), given, strict=True):
                self._set(name, value)
            self.request.infer()
            return np.array(self.request.get_output_tensor(0).data, dtype=np.float32)

    def _set(self, name: str, value: NDArray[Any]) -> None:
        self.request.set_tensor(name, self.openvino.Tensor(value, shared_memory=True))


def _reason(error: RuntimeError) -> str:
    """The last line of OpenVINO's message; those before it name places in its source."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
