"""The registry: which version of which task answers now. `serving.changes` changes it under requests in flight."""

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from mosa_deploy.bundles.decision import Decision
from mosa_deploy.bundles.record import Record
from mosa_deploy.client.schema import LaneName
from mosa_deploy.errors import BundleError, MosaError, ParityError, StoreError, unknown_name
from serving.errors import RequestError
from serving.loaded_task import LoadedTask
from serving.loading import Loader
from serving.model_cache import ModelCache
from serving.store import TaskStore, Version

log = logging.getLogger("mosa_deploy.serving")

LOADERS, READERS = 2, 16
REFUSING = (BundleError, ParityError, StoreError)
"""What says that a version cannot be served; any other fault may be over when it is asked for again."""
DAMAGED = "damaged"
"""Takes the place of a version's key where the decision or the version cannot be read."""


@dataclass(eq=False)
class Entry:
    """A task of the store."""

    name: str
    decision: Decision
    version: Version | None = None
    loaded: LoadedTask | None = None
    loading: "Future[None] | None" = None
    refused: str | None = None
    """Why it cannot be served."""


class Registry:
    """Every task by name. Reading takes one lock and never waits for a load."""

    def __init__(
        self,
        store: TaskStore,
        loader: Loader,
        limits: Mapping[LaneName, int],
        folded: tuple[str, ...] = (),
        count: Callable[[str], None] = lambda event: None,
    ) -> None:
        """`folded` are the tasks of that lane unless a decision says otherwise. `count` counts loads and evictions."""
        self.store, self.folded, self.count = store, folded, count
        self.cache = ModelCache(loader, limits, self._evicted)
        self.lock = self.cache.lock
        self.entries: dict[str, Entry] = {}
        self._loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="mosa-load")
        # Requests wait for loads, and must not wait for comparisons.
        self._improver = ThreadPoolExecutor(1, thread_name_prefix="mosa-compare")

    def read(self) -> Iterable[tuple[Version, LaneName]]:
        """List the store; returns the versions that can be loaded, with their lanes."""
        self.store.sweep()
        revisions = self.store.decisions.revisions()
        # Each task is a few small files, for which an object store takes its time.
        with ThreadPoolExecutor(READERS) as pool:
            read = pool.map(lambda name: self.read_entry(name, revisions.get(name)), self.store.names())
            self.entries = {entry.name: entry for entry in read}
        versions = [(entry, entry.version) for entry in self.entries.values() if entry.version]
        return [(version, self.lane_of(entry.name, entry.decision, version.record)) for entry, version in versions]

    def prefetch(self, count: int) -> None:
        """Load up to `count` tasks per lane. One that fails does not stop the others."""
        remaining = {lane: min(count, limit) for lane, limit in self.cache.limits.items()}
        for entry in sorted(self.entries.values(), key=lambda entry: not entry.decision.pinned):
            lane = self.lane_of(entry.name, entry.decision, entry.version.record if entry.version else None)
            if entry.version is None or not remaining[lane]:
                continue
            remaining[lane] -= 1
            try:
                self.release(self.acquire(entry.name))
            except MosaError as fault:
                log.error("not serving %s: %s", entry.name, fault, extra={"task": entry.name})
        for name in sorted({*self.folded} - self.entries.keys() - {"*"}):
            log.warning("MOSA_FOLDED: %s", unknown_name("task", name, self.entries))
        self.cache.loader.lanes.drop_unused()

    def close(self) -> None:
        """Cancel the loads that have not begun, and wait for the others; a batcher that is closed ends them soon."""
        self._loaders.shutdown(cancel_futures=True)
        self._improver.shutdown(cancel_futures=True)

    def entry(self, name: str) -> Entry:
        """A task of the store that is not removed.

        Raises:
            RequestError: 404, with the nearest names.
        """
        with self.lock:
            entry = self.entries.get(name)
            if entry is None or entry.decision.current is None:
                known = [other.name for other in self.entries.values() if other.decision.current]
                raise RequestError(404, unknown_name("task", name, known))
            return entry

    def task_on(self, backbone: str) -> str:
        """The first task by name that the shared lane has on a backbone, which may be empty if there is only one.

        Raises:
            RequestError: 404 if there is none, 422 if it is not clear which backbone is meant.
        """
        found: dict[str, str] = {}
        with self.lock:
            for entry in sorted(self.entries.values(), key=lambda entry: entry.name, reverse=True):
                record = entry.version.record if entry.version and not entry.refused else None
                if record and self.lane_of(entry.name, entry.decision, record) == "shared":
                    found[record.backbone.folder] = entry.name
        meant = [folder for folder in found if backbone in ("", folder, folder.rpartition("-")[0])]
        if len(meant) > 1:
            raise RequestError(
                422, f"several backbones are meant: send `backbone` as one of {', '.join(sorted(meant))}"
            )
        if not meant:
            reason = (
                unknown_name("backbone", backbone, found) if backbone and found else "no task is in the shared lane"
            )
            raise RequestError(404, f"{reason}; only the shared lane gives the features of a plain backbone")
        return found[meant[0]]

    def list(self) -> list[Entry]:
        """Every task that is not removed, sorted by name."""
        with self.lock:
            return [self.entries[name] for name in sorted(self.entries) if self.entries[name].decision.current]

    def hold(self, name: str) -> "LoadedTask | Future[None]":
        """The version that answers now, held until `release`; if it is not loaded, the load to wait for.

        Raises:
            RequestError: 404 for an unknown task, 503 for one that cannot be served.
        """
        with self.lock:
            entry = self.entry(name)
            if entry.loaded:
                self.cache.hold(entry.loaded)
                return entry.loaded
            if entry.refused:
                raise RequestError(503, entry.refused)
            if entry.loading is None:
                entry.loading = self._loaders.submit(self._load, entry)
            return entry.loading

    def acquire(self, name: str) -> LoadedTask:
        """Like `hold`, but wait for the load."""
        while isinstance(held := self.hold(name), Future):
            held.result()
        return held

    def release(self, loaded: LoadedTask) -> None:
        """Called when the request that held it ends."""
        self.cache.release(loaded)

    def keep(self, entry: Entry, decision: Decision) -> None:
        """Note a decision that leaves a task's version as it is."""
        with self.lock:
            entry.decision = decision
            if entry.loaded:
                entry.loaded.pinned = decision.pinned

    def swap(
        self,
        entry: Entry,
        version: Version | None,
        loaded: LoadedTask | None,
        decision: Decision,
        refused: str | None = None,
    ) -> None:
        """Give another version, or none, to new requests, and retire the one before."""
        with self.lock:
            old, entry.loaded = entry.loaded, loaded
            entry.version, entry.decision, entry.refused = version, decision, refused
            self.entries[entry.name] = entry
            if old:
                self.cache.retire(old)

    def read_entry(self, name: str, revision: int | None = None) -> Entry:
        """Read a task from the store; `revision` is that of its decision, as it was listed last.

        Raises:
            StoreAccessError: the store cannot be read.
        """
        try:
            entry = Entry(name, self.store.decision(name, revision))
            if entry.decision.current:
                entry.version = self.store.version(name, entry.decision.current)
        except (BundleError, StoreError) as fault:
            log.error("not serving %s: %s", name, fault, extra={"task": name})
            return Entry(name, Decision(current=DAMAGED, exported=self.store.exported(name)), refused=str(fault))
        return entry

    def lane_of(self, name: str, decision: Decision, record: Record | None) -> LaneName:
        """The lane that was decided for a task, else the one that the settings name.

        Tasks that tuned the backbone itself are always folded, and those whose adapters cannot be folded are served
        unfolded.
        """
        if record and record.tunes_backbone:
            return "folded"
        if record and record.sequential:
            return "unfolded"
        if decision.lane:
            return decision.lane
        return "folded" if name in self.folded or "*" in self.folded else "shared"

    def _load(self, entry: Entry) -> None:
        """Load the version that a task's decision names."""
        version, decision = entry.version, entry.decision
        assert version is not None
        try:
            bundle = self.store.archive(entry.name, version.key).bundle()
            lane = self.lane_of(entry.name, decision, version.record)
            loaded = self.cache.load(version, bundle, lane, decision.pinned)
        except BaseException as fault:
            with self.lock:
                entry.loading = None
                if isinstance(fault, REFUSING) and entry.version is version:
                    entry.refused = str(fault)
            raise
        self.log_loaded(loaded)
        with self.lock:
            entry.loading = None
            if entry.version is version and entry.loaded is None:
                entry.loaded = loaded
            else:
                self.cache.retire(loaded)
            self.cache.release(loaded)

    def improve(self, entry: Entry) -> None:
        """Compare a version that was postponed, without waiting, and let a faster candidate serve it if it may."""
        assert entry.version is not None
        self._improver.submit(self._improve, entry, entry.version)

    def _improve(self, entry: Entry, version: Version) -> None:
        task = entry.name
        try:
            bundle = self.store.archive(task, version.key).bundle()
            lane = self.lane_of(task, entry.decision, version.record)
            loaded = self.cache.load(version, bundle, lane, entry.decision.pinned)
        except MosaError as fault:
            log.warning("%s stays as it is: %s", task, fault, extra={"task": task})
            return
        with self.lock:
            # It may have been changed, or evicted, meanwhile.
            old = entry.loaded if self.entries.get(task) is entry and entry.version is version else None
            if old:
                entry.loaded, loaded.pinned = loaded, entry.decision.pinned
            self.cache.retire(old or loaded)
            self.cache.release(loaded)
        if old:
            self.log_loaded(loaded)

    def log_loaded(self, loaded: LoadedTask) -> None:
        """Say in the log, and count, that a version is loaded."""
        version, lane = loaded.version, loaded.lane
        self.count("load")
        task, digest = version.record.task, version.digest[:12]
        log.info("serving %s, bundle %s, %s by %s", task, digest, lane.kind, lane.plan, extra={"task": task})

    def _evicted(self, loaded: LoadedTask) -> None:
        entry = self.entries.get(loaded.version.record.task)
        if entry and entry.loaded is loaded:
            entry.loaded = None
        self.count("eviction")
