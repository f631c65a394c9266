"""Runners: one protocol to run a graph of either lane, whichever runtime is behind it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ConfigError, unknown_name
from mosa_deploy.runtimes.names import DEFAULT_RUNNER, RUNNERS, Arithmetic, RunnerName
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner, execution_provider
from mosa_deploy.runtimes.openvino import OpenVinoRunner, load_openvino
from mosa_deploy.runtimes.tensorrt import check_engines, open_engine
from mosa_deploy.utils.processes import cores


class Runner(Protocol):
    """Runs one graph, a task's own or a shared one. Several threads may call it."""

    @property
    def precision(self) -> Arithmetic:
        """The precision in which it computes an fp32 graph."""
        ...

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The batch sizes that it was built for, ascending; it pads others. None if it takes any."""
        ...

    def bind(self, tensors: Mapping[str, Array]) -> None:
        """Give inputs that stay from run to run, by name."""
        ...

    def refresh(self, tensors: Mapping[str, Array], slots: Sequence[int]) -> None:
        """Say that these slots of what is bound have changed; a slot is a place of the first axis."""
        ...

    def device_lost(self) -> bool:
        """Whether its device no longer works in this process, as a GPU after a fault. Asked when a run has failed."""
        ...

    def release(self) -> None:
        """Give back the memory that runs so far took for intermediate values, now or at the end of the next run."""
        ...

    def run(self, *inputs: NDArray[Any]) -> Array:
        """Run the graph on the inputs that are not bound, given in the graph's order.

        A task's own graph: images (B, 3, H, W) -> logits (B, K).
        A shared graph: images, slots (B,) int64 -> features (B, C).
        The shared graph of probes: images -> features (B, F).
        """
        ...


def check_runner(name: str) -> None:
    """Look for a runner's runtime before there is a graph to run.

    Raises:
        ConfigError: the name is unknown.
        ProviderError: the runtime, or something that it needs, is missing.
    """
    match name:
        case "onnxruntime-cpu":
            execution_provider("cpu")
        case "onnxruntime-cuda":
            execution_provider("cuda")
        case "openvino":
            load_openvino("fp32")
        case "openvino-bf16":
            load_openvino("bf16")
        case "tensorrt":
            check_engines()
        case _:
            raise ConfigError(unknown_name("runner", name, RUNNERS))


def open_runner(
    path: Path, name: RunnerName = DEFAULT_RUNNER, threads: int = 0, spinning: bool = True, streams: int = 1
) -> Runner:
    """Load a graph or an engine. `threads` and `spinning` are those of `open_session`; an engine needs neither.

    With several `streams` a CPU is for so many runs at once: each has its share of the threads.

    Raises:
        ProviderError: the runtime is missing, did not start, or is not the one that built the engine.
        StoreError: the file is missing, or is no graph or engine.
        ParityError: an engine misses the canary beside it.
    """
    match name:
        case "onnxruntime-cpu":
            return OnnxRunner(path, "cpu", threads if streams == 1 else (threads or cores()) // streams, spinning)
        case "onnxruntime-cuda":
            return OnnxRunner(path, "cuda", threads, spinning)
        case "openvino":
            return OpenVinoRunner(path, "fp32", threads, streams)
        case "openvino-bf16":
            return OpenVinoRunner(path, "bf16", threads, streams)
        case "tensorrt":
            return open_engine(path)
