"""Runners: one way to run a graph, whatever the runtime behind it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import onnxruntime

from mosa_deploy.errors import ProviderError, StoreError
from mosa_deploy.preprocess import Array

Provider = Literal["cpu", "cuda"]

EXECUTION_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Runner(Protocol):
    """Runs one graph."""

    def run(self, images: Array) -> Array:
        """(B, 3, H, W) -> logits (B, K)."""
        ...


class OnnxRunner:
    """ONNX Runtime on one execution provider; a provider that is not there is an error, never a silent CPU."""

    def __init__(self, path: Path, provider: Provider = "cpu", threads: int = 0, spinning: bool = True) -> None:
        """`threads` of 0 takes one for each core; without `spinning` they sleep as soon as they have nothing to do.

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
            self.session = onnxruntime.InferenceSession(path, options, providers=[wanted])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
            raise StoreError(f"{path} cannot be loaded: {str(error).splitlines()[0]}; export it again") from error
        if wanted not in self.session.get_providers():
            raise ProviderError(f"{wanted} did not start, its libraries are missing: use provider 'cpu'")
        self.input = self.session.get_inputs()[0].name

    def run(self, images: Array) -> Array:
        """(B, 3, H, W) -> logits (B, K)."""
        outputs: Sequence[object] = self.session.run(None, {self.input: images})
        return np.asarray(outputs[0], dtype=np.float32)
