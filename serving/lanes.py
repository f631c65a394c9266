"""Lanes: the ways to serve a task.

    shared    one graph for every task of a backbone, each image with the slot of its task: -> features (n, C)
    folded    a graph of the task's own, folded here with numpy: -> logits (n, K)

Only this module knows which graph file and which bank a task needs.
"""

import functools
import logging
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import GraphIndex, graph_file, read_index
from mosa_deploy.bundles.preprocess import Array, Preprocess
from mosa_deploy.bundles.record import Record
from mosa_deploy.bundles.store_layout import ENGINES, UNFOLDED
from mosa_deploy.bundles.task_graph import check_proved
from mosa_deploy.client.schema import LaneName
from mosa_deploy.errors import BundleError, ConfigError, MosaError, StoreError
from mosa_deploy.graphs.adapter_weights import AdapterWeights, SharedLayout, choose_layout
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.names import ON_GPU, Arithmetic, RunnerName
from mosa_deploy.runtimes.runner import Runner, open_runner
from mosa_deploy.runtimes.shared import SharedRunner
from mosa_deploy.runtimes.tensorrt_record import engines_of, read_records
from serving.batching import Batcher, Item, sizes_up_to
from serving.runtime import Runtimes

log = logging.getLogger("mosa_deploy.serving")


@dataclass(frozen=True)
class ExecutionPlan:
    """How a lane's graph is run."""

    runtime: RunnerName
    precision: Arithmetic
    sizes: tuple[int, ...]
    """The batch sizes that it takes, ascending."""

    @classmethod
    def of(cls, runner: Runner, name: RunnerName, max_batch: int) -> Self:
        """The plan for batches of at most `max_batch`.

        An engine takes the sizes that it was built for, up to the first that holds `max_batch`.
        """
        if runner.sizes is None:
            return cls(name, runner.precision, sizes_up_to(max_batch))
        smaller = tuple(size for size in runner.sizes if size < max_batch)
        return cls(name, runner.precision, runner.sizes[: len(smaller) + 1])

    @property
    def padding(self) -> float:
        """See `Lane`. On a GPU a fuller batch takes little longer; on a CPU padding takes as long as images do."""
        return 0.25 if self.runtime in ON_GPU else 0.0

    def __str__(self) -> str:
        return f"{self.runtime} in {self.precision}"


class SharedLane:
    """A backbone's shared graph with its bank. One slot stays empty, for tasks that put nothing into the bank."""

    kind: LaneName = "shared"

    def __init__(self, graph: Path, bank: Bank, runner: RunnerName, threads: int, max_batch: int) -> None:
        """Raises StoreError if there is no such graph, or what `open_runner` raises."""
        self.bank = bank
        self.empty = bank.write({})
        self.runner = SharedRunner(open_runner(graph, runner, threads, spinning=False), bank)
        self.plan = ExecutionPlan.of(self.runner.runner, runner, max_batch)
        self.proved = False
        """Whether any task has passed its canary here."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `Lane`."""
        return self.plan.sizes

    @property
    def padding(self) -> float:
        """See `Lane`."""
        return self.plan.padding

    def write(self, weights: AdapterWeights) -> int:
        """Put a task into a slot and return the slot; tasks without weights share the empty one."""
        return self.bank.write(weights) if weights else self.empty

    def pass_of(self, slot: int) -> int:
        """A key of the pass that answers for a task in this slot: all probes share one."""
        return slot if self.bank.layout.by_slot else self.empty

    def clear(self, slot: int) -> None:
        """Free a slot, unless it is the empty one."""
        if slot != self.empty:
            self.bank.clear(slot)

    def device_lost(self) -> bool:
        """See `Runner`."""
        return self.runner.runner.device_lost()

    def run(self, items: Sequence[Item], size: int) -> Array:
        """Run n items as a batch of `size` -> features (n, C), or all those of probes."""
        slots = np.full(size, self.empty, dtype=np.int64)
        slots[: len(items)] = [item.slot for item in items]
        return self.runner.run(inputs(items, size), slots)[: len(items)]


class OwnGraphLane:
    """A graph of one task alone, folded into its backbone or with its adapters as nodes of their own."""

    def __init__(self, kind: LaneName, runner: Runner, name: RunnerName, max_batch: int) -> None:
        self.kind = kind
        self.runner, self.plan = runner, ExecutionPlan.of(runner, name, max_batch)

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `Lane`."""
        return self.plan.sizes

    @property
    def padding(self) -> float:
        """See `Lane`."""
        return self.plan.padding

    def device_lost(self) -> bool:
        """See `Runner`."""
        return self.runner.device_lost()

    def run(self, items: Sequence[Item], size: int) -> Array:
        """Run n items as a batch of `size` -> logits (n, K)."""
        return self.runner.run(inputs(items, size))[: len(items)]


AnyLane = SharedLane | OwnGraphLane


def inputs(items: Sequence[Item], size: int) -> Array:
    """The backbone's input for a batch (size, 3, H, W), padded with zeros."""
    height, width = items[0].pixels.shape[:2]
    images = np.zeros((size, 3, height, width), dtype=np.float32)
    by_preprocess: dict[Preprocess, list[int]] = {}
    for i, item in enumerate(items):
        by_preprocess.setdefault(item.preprocess, []).append(i)
    for preprocess, places in by_preprocess.items():
        images[places] = preprocess.normalise(np.stack([items[i].pixels for i in places]))
    return images


class Lanes:
    """Opens lanes, each shared one once, and warms them up."""

    def __init__(self, batcher: Batcher, runtimes: Runtimes, threads: int, capacity: int) -> None:
        """`capacity` is the number of slots that a bank starts with. A slot takes memory once it is written."""
        self.batcher, self.runtimes, self.threads, self.capacity = batcher, runtimes, threads, capacity
        self._shared: dict[Path, SharedLane] = {}
        self._disabled_engines: set[Path] = set()
        self._lock = threading.Lock()

    def engines(self, folder: Path, graph: str) -> list[Path]:
        """The engines to try for a graph, the first choice first."""
        if self.runtimes.capability is None:
            return []
        try:
            found = engines_of(folder, graph, self.runtimes.capability)
        except StoreError as fault:
            self.disable_engine(folder / ENGINES, graph, fault)
            return []
        return [engine for engine in found if engine not in self._disabled_engines]

    def disable_engine(self, engine: Path, task: str, fault: MosaError) -> None:
        """Log why a task is served without an engine, and give the engine up unless only this task is to blame.

        Only the task is to blame if it exceeds the engine's limits, or if the engine serves other tasks already.
        """
        with self._lock:
            lane = self._shared.get(engine)
            if not (isinstance(fault, ConfigError) or (lane and lane.proved)):
                if engine in self._disabled_engines:
                    return
                self._disabled_engines.add(engine)
                self._shared.pop(engine, None)
        log.warning("%s without %s, by %s: %s", task, engine.name, self.runtimes.graphs, fault, extra={"task": task})

    def shared(self, folder: Path, record: Record, weights: AdapterWeights, engine: Path | None) -> SharedLane:
        """The shared lane of a task whose backbone is in `folder`, run by an engine or from the ONNX file.

        Raises:
            BundleError: the backbone has no shared graph for tasks of this kind.
            StoreError: the graph or the engine is damaged.
            ProviderError: the engine does not fit this machine.
        """
        index = read_index(folder)
        wanted = choose_layout(record, index.files)
        path = engine or folder / wanted.file
        with self._lock:
            if path not in self._shared:
                limits = read_records(folder)[path.name].bank if engine else None
                if engine is None:
                    _check_graph(folder, index, wanted)
                bottleneck = max((weights[name].shape[0] for name in weights if name.endswith(".up")), default=1)
                # A pass answers for every slot of a bank of queries, so it has few.
                bank = Bank(wanted, bottleneck, self.capacity if wanted.by_slot else 1, limits)
                lane = SharedLane(path, bank, self._runner(engine), self.threads, self.batcher.max_batch)
                self._warm(lane, record.preprocess, lane.empty)
                self._shared[path] = lane
            return self._shared[path]

    def folded(self, folder: Path, bundle: Bundle) -> OwnGraphLane:
        """A new lane of one task, folded into its backbone, which is in `folder`.

        Raises:
            StoreError: the backbone's graph is missing or damaged.
        """
        # Only a service that folds needs onnx.
        from mosa_deploy.graphs.backbone_graph import PlainGraph
        from mosa_deploy.graphs.fold import fold_bundle

        model = fold_bundle(PlainGraph.load(folder), bundle)
        with tempfile.TemporaryDirectory(prefix="mosa-") as aside:
            path = Path(aside) / "folded.onnx"
            path.write_bytes(model.SerializeToString())
            return self._open(path, self.runtimes.graphs, "folded", bundle.record.preprocess)

    def unfolded(self, folder: Path, bundle: Bundle) -> OwnGraphLane:
        """A new lane of one task, by the graph that was exported into its `folder` with the adapters' own nodes.

        Raises:
            StoreError: the graph is missing, or not the one that was proved with this bundle.
        """
        check_proved(folder / UNFOLDED, bundle.digest)
        return self._open(folder / UNFOLDED, self.runtimes.graphs, "unfolded", bundle.record.preprocess)

    def by_engine(self, engine: Path, kind: LaneName, bundle: Bundle) -> OwnGraphLane:
        """A new lane of one task, by its own engine.

        Raises:
            StoreError: the engine is damaged.
            ProviderError: it does not fit.
            ParityError: it misses its canary.
        """
        return self._open(engine, "tensorrt", kind, bundle.record.preprocess)

    def _open(self, path: Path, name: RunnerName, kind: LaneName, preprocess: Preprocess) -> OwnGraphLane:
        runner = open_runner(path, name, self.threads, spinning=False)
        lane = OwnGraphLane(kind, runner, name, self.batcher.max_batch)
        self._warm(lane, preprocess, 0)
        return lane

    def _runner(self, engine: Path | None) -> RunnerName:
        return self.runtimes.graphs if engine is None else "tensorrt"

    def _warm(self, lane: AnyLane, preprocess: Preprocess, slot: int) -> None:
        """Run every batch size once, between the batches of other lanes."""
        blank: NDArray[np.uint8] = np.zeros((*preprocess.size, 3), dtype=np.uint8)
        for size in lane.sizes:
            items = [Item(lane, blank, preprocess, slot, deadline=float("inf"))]
            try:
                self.batcher.call(functools.partial(lane.run, items, size)).result()
            except Exception as fault:  # ONNX Runtime's exceptions share no base class of their own.
                reason = str(fault).splitlines()[0]
                raise StoreError(f"the graph does not take images of {preprocess.size}: {reason}") from fault


def _check_graph(folder: Path, index: GraphIndex, wanted: SharedLayout) -> None:
    """Raises BundleError if there is no graph for a layout, StoreError if it was altered since it was traced."""
    if wanted.file not in index.files:
        raise BundleError(
            f"{folder.name} has no {wanted.file} in the store: `mosa export --bundle RUN --out STORE` of a task of this"
            " kind writes it; or choose the folded lane"
        )
    graph_file(folder, index, wanted.file)
