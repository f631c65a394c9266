"""The model cache: it loads versions of tasks into lanes, proves them by their canary, and evicts them."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.canary import CANARY_PIXELS
from mosa_deploy.bundles.graph_index import read_index
from mosa_deploy.bundles.preprocess import Array, Pixels, probabilities
from mosa_deploy.bundles.store_layout import ENGINES, FOLDED, UNFOLDED, backbone_folder, task_folder
from mosa_deploy.client.schema import LaneName
from mosa_deploy.errors import BundleError, MosaError, ParityError
from mosa_deploy.graphs.adapter_weights import adapter_weights, choose_layout
from mosa_deploy.runtimes.names import CANARY_TOLERANCE
from mosa_deploy.runtimes.shared import Head, apply_head
from mosa_deploy.runtimes.tensorrt_record import AGAIN
from serving import metrics
from serving.batching import Batcher, Item
from serving.errors import RequestError, busy
from serving.images import read_pixels
from serving.lanes import AnyLane, Lanes, SharedLane
from serving.store import TaskStore, Version

OWN_GRAPH: tuple[LaneName, ...] = ("folded", "unfolded")
"""The lanes in which each task has a session of its own; MOSA_SESSIONS bounds them together."""

CANARY_SECONDS = 60.0


@dataclass(eq=False)
class LoadedTask:
    """A version of a task that can answer; `users` counts the requests that hold it."""

    version: Version
    lane: AnyLane
    slot: int
    head: Head | None
    """None if the graph has a head of its own."""
    columns: slice = field(default_factory=lambda: slice(None))
    """The features that the head reads."""
    users: int = 0
    retired: bool = False
    pinned: bool = False

    def item(self, pixels: Pixels, deadline: float) -> Item:
        """Prepare an image (H, W, 3) for this version's lane."""
        return Item(self.lane, pixels, self.version.record.preprocess, self.slot, deadline)

    def probabilities(self, rows: Array) -> Array:
        """The lane's output, (n, C) or (n, K) -> calibrated probabilities (n, K)."""
        # Values that are not finite are looked for afterwards.
        with np.errstate(over="ignore", invalid="ignore"):
            logits = rows if self.head is None else apply_head(rows[:, self.columns], self.head)
            return probabilities(logits, self.version.record.temperature)


class ModelCache:
    """Every loaded version, the least recently used first."""

    def __init__(
        self,
        store: TaskStore,
        lanes: Lanes,
        batcher: Batcher,
        limits: Mapping[LaneName, int],
        evicted: Callable[[LoadedTask], None],
    ) -> None:
        """`limits` are the most versions per lane. `evicted` is called, under the lock, for each that is evicted."""
        self.store, self.lanes, self.batcher, self.limits, self.evicted = store, lanes, batcher, limits, evicted
        self.lock = threading.RLock()
        self._loaded: OrderedDict[LoadedTask, None] = OrderedDict()
        self._loading = dict.fromkeys(limits, 0)

    def __len__(self) -> int:
        return len(self._loaded)

    def load(self, version: Version, bundle: Bundle, lane: LaneName, pinned: bool = False) -> LoadedTask:
        """Load a version into a lane and prove it there: its canary must give the recorded probabilities.

        The version is held until `release`, so that no other load evicts it before a request can reach it.

        Raises:
            MosaError: the backbone's graph is missing, the canary fails, or there is no room.
        """
        self._make_room(lane)
        try:
            loaded = self._load(version, bundle, lane)
            loaded.pinned = pinned
            with self.lock:
                loaded.users = 1
                self._loaded[loaded] = None
                metrics.loaded_tasks.set(len(self._loaded))
            return loaded
        finally:
            with self.lock:
                self._loading[lane] -= 1

    def hold(self, loaded: LoadedTask) -> None:
        """Called when a request begins to use it."""
        with self.lock:
            loaded.users += 1
            if loaded in self._loaded:
                self._loaded.move_to_end(loaded)

    def release(self, loaded: LoadedTask) -> None:
        """Called when a request has finished with it."""
        with self.lock:
            loaded.users -= 1
            if loaded.retired and not loaded.users:
                self._drop(loaded)

    def retire(self, loaded: LoadedTask) -> None:
        """Give it to no further request, and free its slot after the last one that holds it."""
        with self.lock:
            if not loaded.retired:
                loaded.retired = True
                if not loaded.users:
                    self._drop(loaded)

    def _room(self, lanes: Sequence[LaneName]) -> int:
        """The places of some lanes with a common limit that no load in progress has claimed."""
        return self.limits[lanes[0]] - sum(self._loading[lane] for lane in lanes)

    def _make_room(self, lane: LaneName) -> None:
        lanes: Sequence[LaneName] = OWN_GRAPH if lane in OWN_GRAPH else (lane,)
        with self.lock:
            while len(own := [each for each in self._loaded if each.lane.kind in lanes]) >= self._room(lanes):
                oldest = next((each for each in own if not (each.users or each.pinned or each.retired)), None)
                if oldest is None:
                    name = "MOSA_SESSIONS" if lane in OWN_GRAPH else "MOSA_ACTIVE"
                    raise busy(f"all {self.limits[lane]} places of the {lane} lane are pinned or in use, see {name}")
                self.evicted(oldest)
                self.retire(oldest)
            self._loading[lane] += 1

    def _load(self, version: Version, bundle: Bundle, lane: LaneName) -> LoadedTask:
        """Load a version by the first engine on which it passes its canary, else from the ONNX file."""
        faults: dict[Path, MosaError] = {}
        for engine in self._engines(version, lane):
            try:
                loaded = self._load_by(engine, version, bundle, lane)
                break
            except MosaError as fault:
                faults[engine] = fault
        else:
            loaded = self._load_by(None, version, bundle, lane)
        # Only now it is known that the engines are to blame and not the task.
        for engine, reason in faults.items():
            self.lanes.disable_engine(engine, version.record.task, reason)
        return loaded

    def _load_by(self, engine: Path | None, version: Version, bundle: Bundle, lane: LaneName) -> LoadedTask:
        loaded = self._place(version, bundle, lane, engine)
        try:
            prove(loaded, bundle, self.batcher)
        except BaseException:
            self._free(loaded)
            raise
        if isinstance(loaded.lane, SharedLane):
            loaded.lane.proved = True
        return loaded

    def _engines(self, version: Version, lane: LaneName) -> list[Path]:
        """The engines to try: those beside the backbone's shared graph, or beside the exported task."""
        record = version.record
        if self.lanes.runtimes.capability is None:
            return []
        if lane == "shared":
            folder, graph = backbone_folder(record.backbone), None
        elif version.key == self.store.exported(record.task):
            folder, graph = task_folder(record.task), FOLDED if lane == "folded" else UNFOLDED
        else:
            # The engine beside the export has other weights than an upload.
            return []
        if ENGINES not in self.store.files.names(folder):
            return []
        local = self.store.files.local(folder)
        return self.lanes.engines(local, graph or choose_layout(record, read_index(local).files).file)

    def _place(self, version: Version, bundle: Bundle, lane: LaneName, engine: Path | None) -> LoadedTask:
        if lane != "shared" and engine:
            return LoadedTask(version, self.lanes.by_engine(engine, lane, bundle), 0, None)
        if lane == "unfolded":
            folder = self._exported_folder(version)
            return LoadedTask(version, self.lanes.unfolded(folder, bundle), 0, None)
        folder = self.store.files.local(backbone_folder(version.record.backbone))
        if lane == "folded":
            return LoadedTask(version, self.lanes.folded(folder, bundle), 0, None)
        weights = adapter_weights(bundle)
        shared = self.lanes.shared(folder, version.record, weights, engine)
        slot = self.batcher.call(lambda: shared.write(weights)).result()
        columns = shared.bank.layout.columns(version.record.features, slot)
        return LoadedTask(version, shared, slot, bundle.head, columns)

    def _exported_folder(self, version: Version) -> Path:
        """The folder of a task that is served by its exported graph.

        Raises:
            BundleError: the version was uploaded, and has no graph.
        """
        record = version.record
        if version.key != self.store.exported(record.task):
            style = record.adapter.style if record.adapter else record.method
            raise BundleError(
                f"'{record.task}' has {style} adapters, which only an exported graph can serve, and an upload has none:"
                f" run `mosa export --bundle RUN --out {self.store}`, and restart the service"
            )
        return self.store.files.local(task_folder(record.task))

    def _drop(self, loaded: LoadedTask) -> None:
        del self._loaded[loaded]
        metrics.loaded_tasks.set(len(self._loaded))
        self._free(loaded)

    def _free(self, loaded: LoadedTask) -> None:
        lane = loaded.lane
        if isinstance(lane, SharedLane):
            self.batcher.call(lambda: lane.clear(loaded.slot))


def prove(loaded: LoadedTask, bundle: Bundle, batcher: Batcher) -> None:
    """Run the canary like any request, and compare within the tolerance of what the lane computes in.

    Raises:
        BundleError: the canary is not made of images.
        ParityError: the probabilities are not those that were recorded.
    """
    record, deadline = bundle.record, time.monotonic() + CANARY_SECONDS
    try:
        pixels = [read_pixels(content, [record.preprocess], CANARY_PIXELS)[0] for content in bundle.canary.images]
    except RequestError as error:
        raise BundleError(f"the canary of '{record.task}' is {error}") from None
    items = [loaded.item(each, deadline) for each in pixels]
    batcher.submit(items, bounded=False)
    difference, plan = bundle.canary.error(loaded.probabilities(outputs_of(items))), loaded.lane.plan
    tolerance = CANARY_TOLERANCE[plan.precision]
    if not difference <= tolerance:
        way_out = AGAIN if plan.runtime == "tensorrt" else "export the task again with its own backbone"
        raise ParityError(
            f"'{record.task}': the {loaded.lane.kind} graph misses its canary's probabilities by {difference:.1e},"
            f" above {tolerance:.0e} for {plan}: {way_out}"
        )


def outputs_of(items: Sequence[Item]) -> Array:
    """Wait for the lane's outputs (n, ...)."""
    return np.stack([item.future.result() for item in items])
