"""The two ways to answer a task.

    shared    one graph for every task of a backbone, each image with the slot of its task: -> features (n, C)
    folded    a graph of the task's own, folded here with numpy: -> logits (n, K)

This is the one place that knows which graph file and which bank a task needs.
"""

import ctypes
import functools
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bank import Bank
from mosa_deploy.bundle import Bundle, Record
from mosa_deploy.errors import BundleError, ProviderError, StoreError
from mosa_deploy.preprocess import Array, Preprocess
from mosa_deploy.rows import Layout, Rows, layout
from mosa_deploy.runners import Runner, RunnerName, SharedRunner, check_runner, open_runner
from serving.batching import Batcher, Item
from serving.settings import Runtime


class SharedLane:
    """A backbone with its bank. Slot 0 stays empty: it is the plain backbone, which every linear task shares."""

    kind = "shared"

    def __init__(self, graph: Path, bank: Bank, runner: RunnerName, threads: int) -> None:
        """Raises StoreError if there is no such graph."""
        self.bank = bank
        self.empty = bank.write({})
        self.runner = SharedRunner(graph, bank, runner, threads, spinning=False)

    def write(self, rows: Rows) -> int:
        """Put a task into a slot; a linear one into none."""
        return self.bank.write(rows) if rows else self.empty

    def clear(self, slot: int) -> None:
        """Free a slot."""
        if slot != self.empty:
            self.bank.clear(slot)

    def run(self, items: Sequence[Item], size: int) -> Array:
        """-> features (n, C)."""
        slots = np.full(size, self.empty, dtype=np.int64)
        slots[: len(items)] = [item.slot for item in items]
        return self.runner.run(inputs(items, size), slots)[: len(items)]


class FoldedLane:
    """A task's own graph."""

    kind = "folded"

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def run(self, items: Sequence[Item], size: int) -> Array:
        """-> logits (n, K)."""
        return self.runner.run(inputs(items, size))[: len(items)]


AnyLane = SharedLane | FoldedLane


def inputs(items: Sequence[Item], size: int) -> Array:
    """What the backbone reads (size, 3, H, W), padded with zeros."""
    height, width = items[0].pixels.shape[:2]
    images = np.zeros((size, 3, height, width), dtype=np.float32)
    by_preprocess: dict[Preprocess, list[int]] = {}
    for i, item in enumerate(items):
        by_preprocess.setdefault(item.preprocess, []).append(i)
    for preprocess, places in by_preprocess.items():
        images[places] = preprocess.normalise(np.stack([items[i].pixels for i in places]))
    return images


def chosen_runner(runtime: Runtime) -> RunnerName:
    """The runner that a setting means.

    Raises:
        ProviderError: the runtime, or what it needs, is not here.
    """
    if runtime == "tensorrt":
        raise ProviderError("MOSA_RUNTIME=tensorrt: the service opens no engines yet; use onnxruntime-cuda")
    if runtime == "auto":
        return "onnxruntime-cuda" if _has_nvidia_driver() and _has_cuda() else "onnxruntime-cpu"
    check_runner(runtime)
    return runtime


def _has_nvidia_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _has_cuda() -> bool:
    try:
        check_runner("onnxruntime-cuda")
    except ProviderError:
        return False
    return True


class Lanes:
    """Opens lanes, each shared one once, and warms them up."""

    def __init__(self, batcher: Batcher, runner: RunnerName, threads: int, capacity: int) -> None:
        """`capacity` is the number of slots that a bank starts with; none takes memory before it is written."""
        self.batcher, self.runner, self.threads, self.capacity = batcher, runner, threads, capacity
        self._shared: dict[Path, SharedLane] = {}
        self._lock = threading.Lock()

    def shared(self, folder: Path, record: Record, rows: Rows) -> SharedLane:
        """The shared lane of a task whose backbone lies in `folder`.

        Raises:
            BundleError: the backbone has no shared graph for tasks of this kind.
            StoreError: the graph is damaged.
        """
        wanted = layout(record)
        path = folder / wanted.file
        with self._lock:
            if path not in self._shared:
                _whole(folder, wanted)
                bottleneck = max((rows[name].shape[0] for name in rows if name.endswith(".up")), default=1)
                lane = SharedLane(path, Bank(wanted, bottleneck, self.capacity), self.runner, self.threads)
                self._warm(lane, record.preprocess, lane.empty)
                self._shared[path] = lane
            return self._shared[path]

    def folded(self, folder: Path, bundle: Bundle) -> FoldedLane:
        """A new lane of one task.

        Raises:
            StoreError: the backbone's graph is missing or damaged.
        """
        # onnx is loaded only by a service that folds.
        from mosa_deploy import fold_graph
        from mosa_deploy.graph import PlainGraph

        model = fold_graph.fold(PlainGraph.load(folder), bundle)
        with tempfile.TemporaryDirectory(prefix="mosa-") as aside:
            path = Path(aside) / "folded.onnx"
            path.write_bytes(model.SerializeToString())
            lane = FoldedLane(open_runner(path, self.runner, self.threads, spinning=False))
        self._warm(lane, bundle.record.preprocess, 0)
        return lane

    def _warm(self, lane: AnyLane, preprocess: Preprocess, slot: int) -> None:
        """Run every size of batch once, between the batches of others."""
        blank: NDArray[np.uint8] = np.zeros((*preprocess.size, 3), dtype=np.uint8)
        for size in self.batcher.sizes:
            items = [Item(lane, blank, preprocess, slot, deadline=float("inf"))]
            try:
                self.batcher.call(functools.partial(lane.run, items, size)).result()
            except Exception as fault:  # ONNX Runtime's exceptions share no base class of their own.
                reason = str(fault).splitlines()[0]
                raise StoreError(f"the graph does not take images of {preprocess.size}: {reason}") from fault


def _whole(folder: Path, wanted: Layout) -> None:
    """Raises BundleError if there is no graph for a layout, StoreError if it is not the one that was traced."""
    from mosa_deploy.graph import graph_file, read_index

    index = read_index(folder)
    if wanted.file not in index.files:
        raise BundleError(
            f"{folder.name} has no {wanted.file} in the store: export a task of this kind there, or choose the"
            " folded lane"
        )
    graph_file(folder, index, wanted.file)
