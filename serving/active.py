"""Versions with a place in a lane: loaded, proved by their canary, freed."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mosa_deploy.bundle import Bundle
from mosa_deploy.canary import TOLERANCE
from mosa_deploy.errors import BundleError, ParityError
from mosa_deploy.preprocess import Array, Pixels, probabilities
from mosa_deploy.rows import task_rows
from serving import metrics
from serving.batching import Batcher, Item
from serving.images import read_pixels
from serving.lanes import AnyLane, Lanes, SharedLane
from serving.refusal import RefusedError, busy
from serving.store import BACKBONES, LaneName, TaskStore, Version

CANARY_SECONDS = 60.0
CANARY_PIXELS = 50_000_000


@dataclass(eq=False)
class Active:
    """A version that can answer; `users` are the requests that hold it."""

    version: Version
    lane: AnyLane
    slot: int
    head: tuple[Array, Array] | None
    """Weight (K, C) and bias (K,); None where the graph has its own."""
    users: int = 0
    retired: bool = False
    pinned: bool = False

    def item(self, pixels: Pixels, deadline: float) -> Item:
        """An image (H, W, 3) for this version's lane."""
        return Item(self.lane, pixels, self.version.record.preprocess, self.slot, deadline)

    def probabilities(self, rows: Array) -> Array:
        """What the lane said (n, C) or (n, K) -> calibrated probabilities (n, K)."""
        logits = rows
        if self.head is not None:
            weight, bias = self.head
            # What is not finite fails its canary.
            with np.errstate(over="ignore", invalid="ignore"):
                logits = rows @ weight.T + bias
        return probabilities(logits, self.version.record.temperature)


class Residents:
    """All that is loaded, least recently used first."""

    def __init__(
        self,
        store: TaskStore,
        lanes: Lanes,
        batcher: Batcher,
        limits: Mapping[LaneName, int],
        evicted: Callable[[Active], None],
    ) -> None:
        """`limits`: how many of each lane; `evicted` is told, under the lock, of a version that had to go."""
        self.store, self.lanes, self.batcher, self.limits, self.evicted = store, lanes, batcher, limits, evicted
        self.lock = threading.RLock()
        self._all: OrderedDict[Active, None] = OrderedDict()
        self._coming = dict.fromkeys(limits, 0)

    def __len__(self) -> int:
        return len(self._all)

    def load(self, version: Version, bundle: Bundle, lane: LaneName, pinned: bool = False) -> Active:
        """Give a version a place and prove it there: its canary's bytes must become the recorded probabilities.

        Raises:
            MosaError: the backbone's graph is missing, the canary fails, or there is no room.
        """
        self._make_room(lane)
        try:
            active = self._place(version, bundle, lane)
            active.pinned = pinned
            try:
                prove(active, bundle, self.batcher)
            except BaseException:
                self._free(active)
                raise
            with self.lock:
                self._all[active] = None
                metrics.loaded.set(len(self._all))
            return active
        finally:
            with self.lock:
                self._coming[lane] -= 1

    def hold(self, active: Active) -> None:
        """A request begins with it."""
        with self.lock:
            active.users += 1
            if active in self._all:
                self._all.move_to_end(active)

    def release(self, active: Active) -> None:
        """A request ends."""
        with self.lock:
            active.users -= 1
            if active.retired and not active.users:
                self._drop(active)

    def retire(self, active: Active) -> None:
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

    def _place(self, version: Version, bundle: Bundle, lane: LaneName) -> Active:
        folder = self.store.files.local(f"{BACKBONES}/{version.record.backbone.folder}")
        if lane == "folded":
            return Active(version, self.lanes.folded(folder, bundle), 0, None)
        rows = task_rows(bundle)
        shared = self.lanes.shared(folder, version.record, rows)
        slot = self.batcher.call(lambda: shared.write(rows)).result()
        return Active(version, shared, slot, bundle.head)

    def _drop(self, active: Active) -> None:
        del self._all[active]
        metrics.loaded.set(len(self._all))
        self._free(active)

    def _free(self, active: Active) -> None:
        lane = active.lane
        if isinstance(lane, SharedLane):
            self.batcher.call(lambda: lane.clear(active.slot))


def prove(active: Active, bundle: Bundle, batcher: Batcher) -> None:
    """Send the canary the way of every request, and compare.

    Raises:
        BundleError: the canary is not made of images.
        ParityError: other probabilities.
    """
    record, deadline = bundle.record, time.monotonic() + CANARY_SECONDS
    try:
        pixels = [read_pixels(content, [record.preprocess], CANARY_PIXELS)[0] for content in bundle.canary.images]
    except RefusedError as refused:
        raise BundleError(f"the canary of '{record.task}' is {refused}") from None
    items = [active.item(each, deadline) for each in pixels]
    batcher.submit(items, bounded=False)
    error = bundle.canary.error(active.probabilities(rows_of(items)))
    if error > TOLERANCE["fp32"]:
        raise ParityError(
            f"'{record.task}': the {active.lane.kind} graph misses its canary's probabilities by {error:.1e}:"
            " export the task again with its own backbone"
        )


def rows_of(items: Sequence[Item]) -> Array:
    """What came of items that run or wait (n, ...)."""
    return np.stack([item.future.result() for item in items])
