"""The model cache: it makes room for versions of tasks, counts who uses them, and evicts them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.gate import LabelledImage
from mosa_deploy.client.schema import LaneName
from serving import metrics
from serving.errors import busy
from serving.loaded_task import LoadedTask
from serving.loading import Loader
from serving.store import Version

OWN_GRAPH: tuple[LaneName, ...] = ("folded", "unfolded")
"""The lanes in which each task has a session of its own; MOSA_SESSIONS bounds them together."""


class ModelCache:
    """Every loaded version, the least recently used first."""

    def __init__(self, loader: Loader, limits: Mapping[LaneName, int], evicted: Callable[[LoadedTask], None]) -> None:
        """`limits` are the most versions per lane. `evicted` is called, under the lock, for each that is evicted."""
        self.loader, self.limits, self.evicted = loader, limits, evicted
        self.lock = threading.RLock()
        self._loaded: OrderedDict[LoadedTask, None] = OrderedDict()
        self._loading = dict.fromkeys(limits, 0)

    def __len__(self) -> int:
        return len(self._loaded)

    def load(
        self,
        version: Version,
        bundle: Bundle,
        lane: LaneName,
        pinned: bool = False,
        validation: Sequence[LabelledImage] | None = None,
    ) -> LoadedTask:
        """Load a version into a lane, and prove it there, see `Loader.load`.

        The version is held until `release`, so that no other load evicts it before a request can reach it.

        Raises:
            MosaError: the backbone's graph is missing, the canary fails, or there is no room.
        """
        self._make_room(lane)
        try:
            loaded = self.loader.load(version, bundle, lane, validation)
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

    def _drop(self, loaded: LoadedTask) -> None:
        del self._loaded[loaded]
        metrics.loaded_tasks.set(len(self._loaded))
        self.loader.free(loaded)
