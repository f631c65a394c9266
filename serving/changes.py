"""Changes of what answers: upload, rollback, removal and pin, while requests are in flight."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.store_layout import BACKBONES
from mosa_deploy.client.schema import ChosenLane
from mosa_deploy.errors import BundleError, StoreError
from serving.errors import RequestError
from serving.registry import DAMAGED, Entry, Registry
from serving.store import Decision, Version


class TaskChanges:
    """Changes the tasks of a registry. Each task has one change at a time."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._turns: dict[str, threading.Lock] = {}

    def put(self, name: str, content: bytes, new_classes: bool = False, lane: ChosenLane | None = None) -> Entry:
        """Serve the bundle in a `.mosa` file as the task's new version, once its canary passes.

        Raises:
            RequestError: 400 if it is no bundle, 409 if its classes differ, 422 if it does not fit. The old version
                stays then.
        """
        try:
            archive = Archive.unpack(content, self.registry.store.limit)
            bundle = archive.bundle()
        except BundleError as fault:
            raise RequestError(400, str(fault)) from None
        if bundle.record.task != name:
            raise RequestError(
                422, f"the bundle is of task '{bundle.record.task}': send it to /v1/tasks/{bundle.record.task}"
            )
        backbone = bundle.record.backbone.folder
        if not bundle.record.sequential and backbone not in self.registry.store.files.names(BACKBONES):
            raise RequestError(
                422, f"'{name}' was tuned on {backbone}, which is not in the store: export one of its tasks there"
            )
        with self._turn(name):
            entry = self.registry.entries.get(name) or Entry(name, Decision(current=None))
            now, old = entry.decision, entry.version
            if now.current == DAMAGED:
                now = now.model_copy(update={"current": None})
            if old and now.current and old.record.classes != bundle.record.classes and not new_classes:
                raise RequestError(409, f"'{name}' has other classes now: send ?new_classes=true if that is meant")
            previous = now.previous if now.current in (None, archive.key) else now.current
            update = {"current": archive.key, "previous": previous, "lane": lane or now.lane}
            decision = now.model_copy(update=update)
            self._switch(entry, Version(archive.key, bundle.record), bundle, decision, keep=archive)
            return entry

    def rollback(self, name: str) -> Entry:
        """Serve the previous version. A second rollback undoes the first, and a removed task comes back.

        Raises:
            RequestError: 404 for an unknown task, 409 if it has no previous version.
        """
        with self._turn(name):
            entry = self.registry.entries.get(name) or self.registry.entry(name)
            now = entry.decision
            if now.previous is None:
                raise RequestError(409, f"'{name}' has no version before this one")
            archive = self.registry.store.archive(name, now.previous)
            bundle = archive.bundle()
            decision = now.model_copy(update={"current": now.previous, "previous": now.current})
            self._switch(entry, Version(now.previous, bundle.record), bundle, decision)
            return entry

    def remove(self, name: str) -> None:
        """Stop serving a task; its last version is kept for a rollback.

        Raises:
            RequestError: 404 for an unknown task.
        """
        with self._turn(name):
            entry = self.registry.entry(name)
            now = entry.decision
            self.registry.store.keep_export(name, now)
            decision = now.model_copy(update={"current": None, "previous": now.current, "pinned": False})
            self.registry.store.decide(name, decision)
            self.registry.store.forget_between(now, decision)
            self.registry.swap(entry, None, None, decision)

    def pin(self, name: str, pinned: bool) -> Entry:
        """Load a task and keep it loaded, or let it be evicted again.

        Raises:
            RequestError: 404 for an unknown task, 503 if it cannot be loaded.
        """
        with self._turn(name):
            entry = self.registry.entry(name)
            loaded = self.registry.acquire(name) if pinned else entry.loaded
            try:
                decision = entry.decision.model_copy(update={"pinned": pinned})
                self.registry.store.decide(name, decision)
                with self.registry.lock:
                    entry.decision = decision
                    if entry.loaded:
                        entry.loaded.pinned = pinned
            finally:
                if pinned and loaded:
                    self.registry.release(loaded)
            return entry

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """Wait for this task's turn: each task has one change at a time."""
        with self.registry.lock:
            turn = self._turns.setdefault(name, threading.Lock())
        with turn:
            yield

    def _switch(
        self, entry: Entry, version: Version, bundle: Bundle, decision: Decision, keep: Archive | None = None
    ) -> None:
        """Prove a version, write it and the decision, then give it to new requests."""
        name, before = entry.name, entry.decision
        loaded = self.registry.cache.load(
            version, bundle, self.registry.lane_of(name, decision, version.record), decision.pinned
        )
        try:
            self.registry.store.keep_export(name, before)
            if keep:
                self.registry.store.keep(keep)
            self.registry.store.decide(name, decision)
        except BaseException as fault:
            self.registry.cache.retire(loaded)
            self.registry.cache.release(loaded)
            if isinstance(fault, OSError):
                raise StoreError(f"{self.registry.store} cannot be written: {fault.strerror}") from fault
            raise
        self.registry.swap(entry, version, loaded, decision)
        self.registry.cache.release(loaded)
        self.registry.store.forget_between(before, decision)
        self.registry.log_loaded(loaded)
