"""ONNX Runtime: graphs of both lanes on the CPU or on CUDA."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ProviderError, StoreError
from mosa_deploy.runtimes import cuda
from mosa_deploy.runtimes.names import EXECUTION_PROVIDERS, PROVIDER_ARITHMETIC, QUANTISATION_KEY, Provider
from mosa_deploy.runtimes.pool import Pool

# Recent builds report usage to their maker, which nobody here has asked for.
onnxruntime.disable_telemetry_events()

REASON = 200
"""The most characters of another library's error that ours shows."""


def execution_provider(provider: Provider) -> str:
    """ONNX Runtime's name of a provider that starts here.

    Raises:
        ProviderError: the installed onnxruntime was built without it, or it does not start.
    """
    wanted = EXECUTION_PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise ProviderError(f"{wanted} is not in this onnxruntime: install onnxruntime-gpu, or run on the CPU")
    if provider == "cuda":
        if not cuda.has_driver():
            raise ProviderError(f"{wanted} did not start, there is no NVIDIA driver here: run on the CPU")
        onnxruntime.preload_dlls()
        try:
            # The provider is listed wherever onnxruntime-gpu is installed. Only memory on the device shows a GPU.
            _copy_to_gpu()
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
            reason = " ".join(str(error).split())[:REASON]
            raise ProviderError(
                f"{wanted} did not start, CUDA's libraries or a GPU are missing ({reason}): run on the CPU"
            ) from error
    return wanted


def _copy_to_gpu() -> None:
    """Copy one number to the first GPU; ONNX Runtime raises an exception if that does not work."""
    onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, dtype=np.float32), "cuda", 0)


def open_session(
    path: Path, provider: Provider = "cpu", threads: int = 0, spinning: bool = True
) -> onnxruntime.InferenceSession:
    """A session on one execution provider. It never falls back to the CPU: a provider that is missing is an error.

    `threads` of 0 takes one thread for each core. Without `spinning` idle threads sleep at once.

    Raises:
        ProviderError: the provider did not start.
        StoreError: the file is missing or not a graph.
    """
    if not path.is_file():
        raise StoreError(f"{path}: no such file; write it with `mosa export`")
    wanted = execution_provider(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[wanted])
        if quantisation(session) == "tensorrt":
            # Its eight-bit weights overflow the integer kernels of CPUs without VNNI. Run as they stand, the pairs of
            # Q and DQ compute what TensorRT does.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            session = onnxruntime.InferenceSession(path, options, providers=[wanted])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
        raise StoreError(f"{path} cannot be loaded: {str(error).splitlines()[0]}; export it again") from error
    if wanted not in session.get_providers():
        raise ProviderError(f"{wanted} did not start, its libraries are missing: run on the CPU")
    return session


def quantisation(session: onnxruntime.InferenceSession) -> str | None:
    """What the file of a session was quantised for; None if it was not."""
    found: str | None = session.get_modelmeta().custom_metadata_map.get(QUANTISATION_KEY)
    return found


class OnnxRunner:
    """Runs a graph with ONNX Runtime; the arguments are those of `open_session`.

    On the CPU bound inputs are read where they lie; on CUDA they are copied to the device.
    """

    sizes = None

    def __init__(self, path: Path, provider: Provider = "cpu", threads: int = 0, spinning: bool = True) -> None:
        self.session = open_session(path, provider, threads, spinning)
        self.provider, self.precision = provider, PROVIDER_ARITHMETIC[provider]
        self.quantisation = quantisation(self.session)
        self.inputs = [given.name for given in self.session.get_inputs()]
        self.output = self.session.get_outputs()[0].name
        self.bound: dict[str, onnxruntime.OrtValue] = {}
        self._releases = False
        # A session serves many threads at once, a binding only one.
        self.bindings: Pool[onnxruntime.IOBinding] = Pool(self._binding)

    def bind(self, tensors: Mapping[str, Array]) -> None:
        """Give inputs that stay from run to run, by name."""
        self.bound = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(tensor, self.provider, 0) for name, tensor in tensors.items()
        }
        self.bindings = Pool(self._binding)

    def _binding(self) -> onnxruntime.IOBinding:
        binding = self.session.io_binding()
        for name, value in self.bound.items():
            binding.bind_ortvalue_input(name, value)
        return binding

    def refresh(self, tensors: Mapping[str, Array], slots: Sequence[int]) -> None:
        """On CUDA, copy all of what is bound to the device again: an OrtValue is written as a whole."""
        if self.provider == "cuda":
            self.bind(tensors)

    def device_lost(self) -> bool:
        """See `Runner`. After a fault CUDA fails every call of the process, so a copy of one number shows it."""
        if self.provider == "cpu":
            return False
        try:
            _copy_to_gpu()
        except Exception:  # ONNX Runtime's exceptions share no base class of their own.
            return True
        return False

    def release(self) -> None:
        """See `Runner`. ONNX Runtime gives memory back at the end of a run, so the next one does; on CUDA none."""
        self._releases = self.provider == "cpu"

    def _options(self) -> onnxruntime.RunOptions | None:
        """The options of a run; None for the usual ones."""
        if not self._releases:
            return None
        self._releases = False
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options

    def run(self, *inputs: NDArray[Any]) -> Array:
        """Run the graph on the inputs that are not bound, given in the graph's order."""
        given = dict(zip((name for name in self.inputs if name not in self.bound), inputs, strict=True))
        if not self.bound:
            return np.asarray(self.session.run(None, given, self._options())[0], dtype=np.float32)
        with self.bindings.one() as binding:
            for name, value in given.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            binding.bind_output(self.output, "cpu")
            self.session.run_with_iobinding(binding, self._options())
            return np.asarray(binding.copy_outputs_to_cpu()[0], dtype=np.float32)
