"""The parts of CUDA that engines need, through `cuda-bindings` alone: memory, one stream, and captured graphs.

The library comes with the extras `tensorrt` and `tensorrt-rtx`, and is imported when an engine is opened.
"""

import ctypes
import importlib
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mosa_deploy.errors import ProviderError

NO_DRIVER = (
    "the driver's libcuda.so.1 is not found: install NVIDIA's driver, or start the container with its GPUs, as by"
    " `docker run --gpus all`"
)
"""Why a GPU that is in the machine cannot be used."""


def has_driver() -> bool:
    """Whether NVIDIA's driver is installed. Libraries that are asked for CUDA without it print errors of their own."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is in this machine, usable or not.

    A container sees the GPUs of its host on the PCI bus, also those that it was not given.
    """
    if any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    return any(map(is_nvidia_display, Path("/sys/bus/pci/devices").glob("*")))


def gpu_models() -> tuple[str, ...]:
    """The models of NVIDIA's GPUs, as the driver names them; none without a driver."""
    found = [path.read_text() for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    lines = [line for text in found for line in text.splitlines()]
    return tuple(line.partition(":")[2].strip() for line in lines if line.startswith("Model:"))


def is_nvidia_display(device: Path) -> bool:
    """Whether a device of the PCI bus is a display or 3D controller of NVIDIA's."""
    try:
        return (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x03")
    except OSError:
        return False


def is_hidden() -> bool:
    """Whether the user hides every GPU from CUDA."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")


def load_cuda() -> Any:
    """CUDA's runtime API.

    Raises:
        ProviderError: cuda-bindings is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        raise ProviderError("cuda-bindings is not installed: pip install 'mosa-deploy[tensorrt-rtx]'") from None


def device_capability() -> str | None:
    """The first GPU's compute capability, e.g. `sm86`; None if there is no GPU that the driver can use.

    Raises:
        ProviderError: cuda-bindings is not installed.
    """
    cuda = load_cuda()
    error, count = cuda.cudaGetDeviceCount()
    if error != cuda.cudaError_t.cudaSuccess or not count:
        return None
    kinds = cuda.cudaDeviceAttr
    numbers = [
        cuda.cudaDeviceGetAttribute(kind, 0)[1]
        for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
    ]
    return f"sm{numbers[0]}{numbers[1]}"


@dataclass(frozen=True)
class Buffer:
    """Device memory for one tensor. It is freed with the last reference to it."""

    address: int
    shape: tuple[int, ...]

    def part(self, i: int, size: int) -> "Buffer":
        """Entry `i` of the first axis, `size` bytes long, as a view. The view does not keep the buffer alive."""
        return Buffer(self.address + i * size, self.shape[1:])


class Device:
    """Memory and one stream of the first GPU."""

    def __init__(self) -> None:
        """Raises ProviderError if there is no GPU, or its driver is too old."""
        self.cuda = load_cuda()
        self._call(self.cuda.cudaSetDevice, 0)
        (self._stream,) = self._call(self.cuda.cudaStreamCreate)
        self.stream = int(self._stream)

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> tuple[Any, ...]:
        error, *results = function(*arguments)
        if error != self.cuda.cudaError_t.cudaSuccess:
            raise ProviderError(
                f"{function.__name__}: {error.name}; look at the GPU with nvidia-smi, or run the ONNX file"
            )
        return tuple(results)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        """Allocate uninitialised memory on the device."""
        (address,) = self._call(self.cuda.cudaMalloc, prod(shape) * np.dtype(dtype).itemsize)
        buffer = Buffer(int(address), shape)
        weakref.finalize(buffer, self.cuda.cudaFree, address)
        return buffer

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate zeros in pinned host memory, which a captured graph can copy from and to."""
        size = prod(shape) * np.dtype(dtype).itemsize
        (address,) = self._call(self.cuda.cudaMallocHost, size)
        memory = (ctypes.c_byte * size).from_address(int(address))
        # numpy keeps `memory` alive as long as any view of it.
        weakref.finalize(memory, self.cuda.cudaFreeHost, address)
        array: NDArray[Any] = np.frombuffer(memoryview(memory), dtype=dtype).reshape(shape)
        array[...] = 0
        return array

    def upload(self, buffer: Buffer, source: NDArray[Any]) -> None:
        """Queue a copy of a contiguous array to the device. The array must stay until `synchronize`."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self.cuda.cudaMemcpyAsync, buffer.address, source.ctypes.data, source.nbytes, kind, self._stream)

    def download(self, target: NDArray[Any], buffer: Buffer) -> None:
        """Queue a copy from the device into a contiguous array."""
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self.cuda.cudaMemcpyAsync, target.ctypes.data, buffer.address, target.nbytes, kind, self._stream)

    def synchronize(self) -> None:
        """Wait for everything in the queue."""
        self._call(self.cuda.cudaStreamSynchronize, self._stream)

    def lost(self) -> bool:
        """Whether the GPU no longer works in this process: after a fault CUDA fails every call of it."""
        (error,) = self.cuda.cudaDeviceSynchronize()
        return bool(error != self.cuda.cudaError_t.cudaSuccess)

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        """Record what `queue` puts into the stream without running it; returns a function that runs it as one graph."""
        mode = self.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self.cuda.cudaStreamBeginCapture, self._stream, mode)
        try:
            queue()
        finally:
            (graph,) = self._call(self.cuda.cudaStreamEndCapture, self._stream)
        (executable,) = self._call(self.cuda.cudaGraphInstantiate, graph, 0)
        self._call(self.cuda.cudaGraphDestroy, graph)

        def launch() -> None:
            self._call(self.cuda.cudaGraphLaunch, executable, self._stream)

        weakref.finalize(launch, self.cuda.cudaGraphExecDestroy, executable)
        return launch
