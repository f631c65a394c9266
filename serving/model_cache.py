"""Versions with a place in a lane: loaded, proved by their canary, freed."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array, Pixels, probabilities
from mosa_deploy.bundles.store_layout import ENGINES, FOLDED, backbone_folder, task_folder
from mosa_deploy.errors import BundleError, MosaError, ParityError
from mosa_deploy.graphs.adapter_weights import adapter_weights, layout_of
from mosa_deploy.runtimes.names import CANARY_TOLERANCE
from mosa_deploy.runtimes.shared import Head, apply_head
from mosa_deploy.runtimes.tensorrt_record import AGAIN
from serving import metrics
from serving.batching import Batcher, Item
from serving.errors import RequestError, busy
from serving.images import read_pixels
from serving.lanes import AnyLane, Lanes, SharedLane
from serving.store import LaneName, TaskStore, Version

CANARY_SECONDS = 60.0
CANARY_PIXELS = 50_000_000


@dataclass(eq=False)
class LoadedTask:
    """A version that can answer; `users` are the requests that hold it."""

    version: Version
    lane: AnyLane
    slot: int
    head: Head | None
    """None where the graph has its own."""
    users: int = 0
    retired: bool = False
    pinned: bool = False

    def item(self, pixels: Pixels, deadline: float) -> Item:
        """An image (H, W, 3) for this version's lane."""
        return Item(self.lane, pixels, self.version.record.preprocess, self.slot, deadline)

    def probabilities(self, rows: Array) -> Array:
        """What the lane said (n, C) or (n, K) -> calibrated probabilities (n, K)."""
        # What is not finite fails its canary.
        with np.errstate(over="ignore", invalid="ignore"):
            logits = rows if self.head is None else apply_head(rows, self.head)
            return probabilities(logits, self.version.record.temperature)


class ModelCache:
    """All that is loaded, least recently used first."""

    def __init__(
        self,
        store: TaskStore,
        lanes: Lanes,
        batcher: Batcher,
        limits: Mapping[LaneName, int],
        evicted: Callable[[LoadedTask], None],
    ) -> None:
        """`limits`: how many of each lane; `evicted` is told, under the lock, of a version that had to go."""
        self.store, self.lanes, self.batcher, self.limits, self.evicted = store, lanes, batcher, limits, evicted
        self.lock = threading.RLock()
        self._all: OrderedDict[LoadedTask, None] = OrderedDict()
        self._coming = dict.fromkeys(limits, 0)

    def __len__(self) -> int:
        return len(self._all)

    def load(self, version: Version, bundle: Bundle, lane: LaneName, pinned: bool = False) -> LoadedTask:
        """Give a version a place and prove it there: its canary's bytes must become the recorded probabilities.

        It is held until `release`, so that no other load takes its place before a request can reach it.

        Raises:
            MosaError: the backbone's graph is missing, the canary fails, or there is no room.
        """
        self._make_room(lane)
        try:
            active = self._proved(version, bundle, lane)
            active.pinned = pinned
            with self.lock:
                active.users = 1
                self._all[active] = None
                metrics.loaded.set(len(self._all))
            return active
        finally:
            with self.lock:
                self._coming[lane] -= 1

    def hold(self, active: LoadedTask) -> None:
        """A request begins with it."""
        with self.lock:
            active.users += 1
            if active in self._all:
                self._all.move_to_end(active)

    def release(self, active: LoadedTask) -> None:
        """A request ends."""
        with self.lock:
            active.users -= 1
            if active.retired and not active.users:
                self._drop(active)

    def retire(self, active: LoadedTask) -> None:
        """No request begins with it any more; its place is freed after the last one that did."""
        with self.lock:
            if not active.retired:
                active.retired = True
                if not active.users:
                    self._drop(active)

    def _make_room(self, lane: LaneName) -> None:
        with self.lock:
            while sum(a.lane.kind == lane for a in self._all) + self._coming[lane] >= self.limits[lane]:
                idle = (a for a in self._all if a.lane.kind == lane and not (a.users or a.pinned or a.retired))
                oldest = next(idle, None)
                if oldest is None:
                    name = "MOSA_SESSIONS" if lane == "folded" else "MOSA_ACTIVE"
                    raise busy(f"all {self.limits[lane]} places of the {lane} lane are pinned or in use, see {name}")
                self.evicted(oldest)
                self.retire(oldest)
            self._coming[lane] += 1

    def _proved(self, version: Version, bundle: Bundle, lane: LaneName) -> LoadedTask:
        """By the first engine that takes it and passes its canary, else by the ONNX file."""
        faults: dict[Path, MosaError] = {}
        for engine in self._engines(version, lane):
            try:
                active = self._tried(version, bundle, lane, engine)
                break
            except MosaError as fault:
                faults[engine] = fault
        else:
            active = self._tried(version, bundle, lane, None)
        # Only now is it known that the task itself is whole.
        for engine, why in faults.items():
            self.lanes.disable_engine(engine, version.record.task, why)
        return active

    def _tried(self, version: Version, bundle: Bundle, lane: LaneName, engine: Path | None) -> LoadedTask:
        active = self._place(version, bundle, lane, engine)
        try:
            prove(active, bundle, self.batcher)
        except BaseException:
            self._free(active)
            raise
        if isinstance(active.lane, SharedLane):
            active.lane.proved = True
        return active

    def _engines(self, version: Version, lane: LaneName) -> list[Path]:
        """The engines beside the backbone's shared graph, or beside the task."""
        record = version.record
        if self.lanes.runtimes.capability is None:
            return []
        if lane == "shared":
            folder, graph = backbone_folder(record.backbone), layout_of(record).file
        elif version.key == self.store.exported(record.task):
            folder, graph = task_folder(record.task), FOLDED
        else:
            # An upload has other weights than the engine beside the export.
            return []
        if ENGINES not in self.store.files.names(folder):
            return []
        return self.lanes.engines(self.store.files.local(folder), graph)

    def _place(self, version: Version, bundle: Bundle, lane: LaneName, engine: Path | None) -> LoadedTask:
        if lane == "folded" and engine:
            return LoadedTask(version, self.lanes.by_engine(engine, bundle), 0, None)
        folder = self.store.files.local(backbone_folder(version.record.backbone))
        if lane == "folded":
            return LoadedTask(version, self.lanes.folded(folder, bundle), 0, None)
        weights = adapter_weights(bundle)
        shared = self.lanes.shared(folder, version.record, weights, engine)
        slot = self.batcher.call(lambda: shared.write(weights)).result()
        return LoadedTask(version, shared, slot, bundle.head)

    def _drop(self, active: LoadedTask) -> None:
        del self._all[active]
        metrics.loaded.set(len(self._all))
        self._free(active)

    def _free(self, active: LoadedTask) -> None:
        lane = active.lane
        if isinstance(lane, SharedLane):
            self.batcher.call(lambda: lane.clear(active.slot))


def prove(active: LoadedTask, bundle: Bundle, batcher: Batcher) -> None:
    """Send the canary the way of every request, and compare, by the tolerance of what the lane computes in.

    Raises:
        BundleError: the canary is not made of images.
        ParityError: other probabilities.
    """
    record, deadline = bundle.record, time.monotonic() + CANARY_SECONDS
    try:
        pixels = [read_pixels(content, [record.preprocess], CANARY_PIXELS)[0] for content in bundle.canary.images]
    except RequestError as refused:
        raise BundleError(f"the canary of '{record.task}' is {refused}") from None
    items = [active.item(each, deadline) for each in pixels]
    batcher.submit(items, bounded=False)
    error, way = bundle.canary.error(active.probabilities(rows_of(items))), active.lane.plan
    tolerance = CANARY_TOLERANCE[way.precision]
    if not error <= tolerance:
        way_out = AGAIN if way.runtime == "tensorrt" else "export the task again with its own backbone"
        raise ParityError(
            f"'{record.task}': the {active.lane.kind} graph misses its canary's probabilities by {error:.1e}, above"
            f" {tolerance:.0e} for {way}: {way_out}"
        )


def rows_of(items: Sequence[Item]) -> Array:
    """What came of items that run or wait (n, ...)."""
    return np.stack([item.future.result() for item in items])
