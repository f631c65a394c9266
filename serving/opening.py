"""Opens lanes: here alone a candidate's file is checked and opened, and a shared graph gets its bank."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import GraphIndex, graph_file, read_index
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.record import Record
from mosa_deploy.bundles.store_layout import FOLDED
from mosa_deploy.bundles.task_graph import check_proved
from mosa_deploy.client.schema import LaneName
from mosa_deploy.errors import BundleError, StoreError
from mosa_deploy.graphs.adapter_weights import AdapterWeights, SharedLayout, choose_layout
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.names import ON_GPU
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.runner import Runner, open_runner
from mosa_deploy.runtimes.shared import bank_scales
from mosa_deploy.runtimes.tensorrt_record import read_records
from serving.batching import Batcher
from serving.candidates import Candidate, write_command
from serving.lanes import AnyLane, ExecutionPlan, OwnGraphLane, SharedLane
from serving.store import Version
from serving.warming import Offer, warm


class Lanes:
    """Opens lanes, each shared one once, and warms them up."""

    def __init__(self, batcher: Batcher, threads: int, capacity: int, measured: bool) -> None:
        """`capacity` is the number of slots that a bank starts with. A slot takes memory once it is written.

        If the sizes of batches are `measured`, those that do not pay on a CPU are left out, and batches run in streams
        where that pays.
        """
        self.batcher, self.threads, self.capacity, self.measured = batcher, threads, capacity, measured
        self._shared: dict[Candidate, SharedLane] = {}
        self._lock = threading.Lock()

    def shared(self, candidate: Candidate, record: Record, weights: AdapterWeights) -> SharedLane:
        """The shared lane of a task.

        Raises:
            BundleError: the backbone has no shared graph for tasks of this kind.
            StoreError: the file is damaged.
            ProviderError: an engine does not fit this machine.
        """
        with self._lock:
            if candidate not in self._shared:
                lane = self._open_shared(candidate, record, weights)
                self._warm(lane, record.preprocess, lane.empty, candidate, candidate.file)
                self._shared[candidate] = lane
            return self._shared[candidate]

    def serves(self, candidate: Candidate) -> bool:
        """Whether any task was proved in the shared lane of a candidate."""
        with self._lock:
            lane = self._shared.get(candidate)
            return lane is not None and lane.proved

    def _open_shared(self, candidate: Candidate, record: Record, weights: AdapterWeights) -> SharedLane:
        assert candidate.file is not None
        folder = candidate.file.parent
        index = read_index(folder)
        layout = choose_layout(record, index.files)
        if not candidate.engine:
            _check_shared(folder, index, layout, candidate)
        runner = self._runner(candidate, candidate.file)
        return SharedLane(runner, self._plan(candidate, runner), self._bank(candidate, layout, weights))

    def _bank(self, candidate: Candidate, layout: SharedLayout, weights: AdapterWeights) -> Bank:
        """A bank for a file of a shared graph, wide enough for the first task."""
        assert candidate.file is not None
        limits = read_records(candidate.file.parent)[candidate.file.name].bank if candidate.engine else None
        bottleneck = max((weights[name].shape[0] for name in weights if name.endswith(".up")), default=1)
        # A pass answers for every slot of a bank of queries, so it has few.
        return Bank(layout, bottleneck, self.capacity if layout.by_slot else 1, limits, bank_scales(candidate.file))

    def own(self, candidate: Candidate, kind: LaneName, bundle: Bundle, backbone: Path | None) -> OwnGraphLane:
        """A new lane of one task. Its graph is folded here, into the backbone in that folder, if it has no file.

        Raises:
            StoreError: the file, or the backbone's graph, is missing or not the one that was proved.
            ProviderError: an engine does not fit this machine.
        """
        if candidate.file is None:
            assert backbone is not None
            with folded_here(backbone, bundle) as path:
                runner = self._runner(candidate, path)
                lane = OwnGraphLane(kind, runner, self._plan(candidate, runner))
                self._warm(lane, bundle.record.preprocess, 0, candidate, path)
        else:
            lane = self._open_own(candidate, kind, bundle.digest)
            self._warm(lane, bundle.record.preprocess, 0, candidate, candidate.file)
        return lane

    def _warm(self, lane: AnyLane, preprocess: Preprocess, slot: int, candidate: Candidate, path: Path | None) -> None:
        """Warm a lane up whose graph was opened from `path`."""
        assert path is not None
        count, offer = self.batcher.streams, None
        if self.measured and count > 1 and candidate.runner not in ON_GPU:
            offer = Offer(count, partial(open_runner, path, candidate.runner, self.threads, False, count))
        warm(lane, preprocess, slot, self.batcher, self.measured, offer)

    def _open_own(self, candidate: Candidate, kind: LaneName, digest: str) -> OwnGraphLane:
        assert candidate.file is not None
        if not candidate.engine:
            check_proved(candidate.file, digest)
        runner = self._runner(candidate, candidate.file)
        return OwnGraphLane(kind, runner, self._plan(candidate, runner))

    def trial(self, candidate: Candidate, kind: LaneName, version: Version) -> AnyLane:
        """A lane in which no task is, to be timed before the service answers; its file must be there.

        Raises:
            MosaError: it cannot be opened.
        """
        if kind == "shared":
            return self._open_shared(candidate, version.record, {})
        return self._open_own(candidate, kind, version.digest)

    def cut(self, lane: SharedLane, block: int) -> tuple[Runner, Runner]:
        """Runners of a shared lane's graph, cut before everything that tasks add to a block or to those after it.

        The bank is bound to both as it is now. They are for as many runs at once as the lane's streams.

        Raises:
            StoreError: it is an engine, or no graph that can be cut there.
        """
        with self._lock:
            candidate = next(candidate for candidate, own in self._shared.items() if own is lane)
        if candidate.engine:
            raise StoreError(f"{candidate.file} is an engine, which cannot be cut")
        # Only `mosa score` cuts, and needs onnx for it.
        from mosa_deploy.graphs.cut import cut_file

        assert candidate.file is not None
        tensors = lane.bank.tensors
        later = tuple(f"{name}." for name in list(lane.bank.layout.topology.blocks)[block:])
        with tempfile.TemporaryDirectory(prefix="mosa-") as aside:
            try:
                parts = cut_file(candidate.file, [name for name in tensors if name.startswith(later)], Path(aside))
            except ValueError as fault:
                raise StoreError(f"{candidate.file} cannot be cut: {fault}") from None
            streams = lane.streams.count if lane.streams else 1
            prefix, suffix = (self._runner(candidate, part, streams) for part in parts)
        for runner, part in zip((prefix, suffix), parts.values(), strict=True):
            runner.bind({name: tensors[name] for name in part if name in tensors})
        return prefix, suffix

    def drop_unused(self) -> None:
        """Close the shared graphs in which no task is."""
        with self._lock:
            self._shared = {candidate: lane for candidate, lane in self._shared.items() if lane.tasks}

    def _runner(self, candidate: Candidate, path: Path | None, streams: int = 1) -> Runner:
        assert path is not None
        runner = open_runner(path, candidate.runner, self.threads, spinning=False, streams=streams)
        if isinstance(runner, OnnxRunner) and runner.quantisation == "tensorrt":
            raise StoreError(
                f"{path} was quantised for TensorRT, and would be slow here: {write_command('int8')} writes one for"
                " CPUs"
            )
        return runner

    def _plan(self, candidate: Candidate, runner: Runner) -> ExecutionPlan:
        return ExecutionPlan.of(candidate, runner, self.batcher.max_batch)


@contextmanager
def folded_here(backbone: Path, bundle: Bundle) -> Iterator[Path]:
    """A task's graph in a file of its own for a while, folded into the backbone whose graphs are in that folder.

    Raises:
        StoreError: the backbone's graph is missing or damaged.
    """
    # Only a service that folds needs onnx.
    from mosa_deploy.graphs.backbone_graph import PlainGraph
    from mosa_deploy.graphs.fold import fold_bundle

    model = fold_bundle(PlainGraph.load(backbone), bundle)
    with tempfile.TemporaryDirectory(prefix="mosa-") as aside:
        path = Path(aside) / FOLDED
        path.write_bytes(model.SerializeToString())
        yield path


def _check_shared(folder: Path, index: GraphIndex, layout: SharedLayout, candidate: Candidate) -> None:
    """Raises BundleError if there is no graph for a layout, StoreError if its file was altered since it was written."""
    if layout.file not in index.files:
        raise BundleError(
            f"{folder.name} has no {layout.file} in the store: `mosa export --bundle RUN --out STORE` of a task of this"
            " kind writes it; or choose the folded lane"
        )
    assert candidate.file is not None
    graph_file(folder, index, candidate.file.name)
