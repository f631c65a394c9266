"""Changes of what answers: upload, rollback, removal and pin, while requests are in flight."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mosa_deploy.bundles.answers import HasClasses
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.decision import Decision, KeptVersion, class_changes, now
from mosa_deploy.bundles.store_layout import BACKBONES
from mosa_deploy.client.schema import Gate
from mosa_deploy.errors import BundleError
from serving.backend import PutOptions
from serving.errors import RequestError
from serving.loaded_task import LoadedTask
from serving.promotion import Comparison, PromotionGate
from serving.registry import DAMAGED, REFUSING, Entry, Registry
from serving.settings import Settings
from serving.store import Version

log = logging.getLogger("mosa_deploy.serving")

SHORT = 12
"""How many characters of a digest an error shows."""


class TaskChanges:
    """Changes the tasks of a registry. Each task has one change at a time."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry, self.keep, self.gate = registry, settings.versions, PromotionGate(registry, settings)
        self._turns: dict[str, threading.Lock] = {}

    def put(self, name: str, content: bytes, options: PutOptions) -> tuple[Entry, Gate | None]:
        """Serve the bundle in a `.mosa` file as the task's new version, once its canary passes.

        Returns how it did on labelled images, if it brings any or some are kept.

        Raises:
            RequestError: 400 if it is no bundle, 409 if its classes differ or it is worse on the labelled images, 422
                if it does not fit. The old version stays then.
        """
        try:
            archive = Archive.unpack(content, self.registry.store.limit)
            bundle = archive.bundle()
        except BundleError as fault:
            raise RequestError(400, str(fault)) from None
        self._check_fit(name, bundle)
        with self._turn(name):
            entry = self.registry.entries.get(name) or Entry(name, Decision(current=None))
            before = entry.decision
            check_classes(before, bundle.record, options.new_classes)
            version = KeptVersion.of(archive.key, bundle.record, "upload", now())
            decision = self._choose(name, before, version)
            decision = decision.model_copy(update={"lane": options.lane or before.lane})
            comparison = self.gate.compare(entry, archive, bundle.record, options)
            new = Version(archive.key, bundle.record)
            gate = self._switch(entry, new, bundle, decision, keep=archive, comparison=comparison)
            if archive.gate:
                self.registry.store.keep_gate(name, archive.gate)
            return entry, gate

    def rollback(self, name: str, digest: str | None = None, new_classes: bool = False) -> Entry:
        """Serve the previous version, or the one whose digest begins so; a removed task comes back.

        A second rollback to the previous version undoes the first.

        Raises:
            RequestError: 404 for an unknown task or version, 409 if it has no previous version or that has other
                classes, 422 if several versions begin so.
        """
        with self._turn(name):
            entry = self.registry.entries.get(name) or self.registry.entry(name)
            before = entry.decision
            key = before.previous if digest is None else find_version(name, before, digest).key
            if key is None:
                raise RequestError(409, f"'{name}' has no version before this one")
            if key == before.current:
                return entry
            archive = self.registry.store.archive(name, key)
            bundle = archive.bundle()
            check_classes(before, bundle.record, new_classes)
            version = before.find(key) or KeptVersion.of(key, bundle.record, "upload", None)
            decision = self._choose(name, before, version, moves=False)
            self._switch(entry, Version(key, bundle.record), bundle, decision)
            return entry

    def remove(self, name: str, force: bool = False) -> None:
        """Stop serving a task; its versions are kept for a rollback.

        Raises:
            RequestError: 404 for an unknown task, 409 for a pinned one without `force`.
        """
        with self._turn(name):
            entry = self.registry.entry(name)
            before = entry.decision
            if before.pinned and not force:
                raise RequestError(409, f"'{name}' is pinned: let it go first, or send ?force=true if that is meant")
            self.registry.store.keep_export(name, before)
            update = {"current": None, "previous": before.current, "pinned": False}
            update["exported"] = self.registry.store.exported(name)
            decision = before.model_copy(update=update)
            self.registry.store.decisions.write(name, decision)
            self.registry.swap(entry, None, None, decision)
            self.registry.store.forget_between(before, decision)

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
                self.registry.store.decisions.write(name, decision)
                self.registry.keep(entry, decision)
            finally:
                if pinned and loaded:
                    self.registry.release(loaded)
            return entry

    def follow(self, name: str) -> None:
        """Serve what another service on the store has decided about a task.

        A version that is loaded here stays until the new one is proved; one that cannot be proved is refused.

        Raises:
            StoreAccessError: the store cannot be read. Nothing is changed then, and the next call tries again.
        """
        decisions = self.registry.store.decisions
        with self._turn(name), decisions.followed_whole(name):
            new, loaded = self._read_other(name)
            # Its files may have been removed by a decision that came while they were read.
            while new.refused and name in decisions.changed():
                new, loaded = self._read_other(name)
            entry = self.registry.entries.get(name) or Entry(name, Decision(current=None))
            if loaded is None and not new.refused and _same(entry, new):
                self.registry.keep(entry, new.decision)
                return
            self.registry.swap(entry, new.version, loaded, new.decision, new.refused)
            if loaded:
                self.registry.cache.release(loaded)
                self.registry.log_loaded(loaded)
                if loaded.postponed:
                    self.registry.improve(entry)

    def _read_other(self, name: str) -> tuple[Entry, LoadedTask | None]:
        """What the store says of a task now; its version, held, if it is another one that has to be loaded now."""
        new, entry = self.registry.read_entry(name), self.registry.entries.get(name)
        if new.version is None or (entry and _same(entry, new)):
            return new, None
        if not ((entry and entry.loaded) or new.decision.pinned):
            return new, None
        try:
            bundle = self.registry.store.archive(name, new.version.key).bundle()
            lane = self.registry.lane_of(name, new.decision, new.version.record)
            return new, self.registry.cache.load(new.version, bundle, lane, new.decision.pinned)
        except REFUSING as fault:
            log.error("not serving %s: %s", name, fault, extra={"task": name})
            new.refused = str(fault)
        except RequestError as fault:  # no room: it is loaded when it is asked for
            log.warning("%s is not loaded yet: %s", name, fault, extra={"task": name})
        return new, None

    def _check_fit(self, name: str, bundle: Bundle) -> None:
        """Raises RequestError 422 if a bundle is of another task, or its backbone is not in the store."""
        record, store = bundle.record, self.registry.store
        if record.task != name:
            raise RequestError(422, f"the bundle is of task '{record.task}': send it to /v1/tasks/{record.task}")
        backbone = record.backbone.folder
        if not record.sequential and backbone not in store.files.names(BACKBONES):
            raise RequestError(
                422, f"'{name}' was tuned on {backbone}, which is not in the store: export one of its tasks there"
            )

    def _choose(self, name: str, before: Decision, version: KeptVersion, moves: bool = True) -> Decision:
        """The decision to serve a version. The version before it is kept; the oldest of too many go."""
        old = before.current if before.current != DAMAGED else None
        update: dict[str, object] = {"current": version.key, "exported": self.registry.store.exported(name)}
        update["previous"] = before.previous if old in (None, version.key) else old
        update["since"] = before.since if old == version.key else now()
        decision = before.model_copy(update=update)
        return decision.keeping(version, self.keep) if moves else decision

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """Wait for this task's turn: each task has one change at a time."""
        with self.registry.lock:
            turn = self._turns.setdefault(name, threading.Lock())
        with turn:
            yield

    def _switch(
        self,
        entry: Entry,
        version: Version,
        bundle: Bundle,
        decision: Decision,
        keep: Archive | None = None,
        comparison: Comparison | None = None,
    ) -> Gate | None:
        """Prove a version, write it and the decision, then give it to new requests."""
        name, before = entry.name, entry.decision
        lane = self.registry.lane_of(name, decision, version.record)
        carried = keep.validation if keep else None
        loaded = self.registry.cache.load(version, bundle, lane, decision.pinned, carried)
        try:
            gate = self.gate.judge(comparison, loaded) if comparison else None
            self.registry.store.keep_export(name, before)
            if keep:
                self.registry.store.keep(keep)
            self.registry.store.decisions.write(name, decision)
        except BaseException:
            self.registry.cache.retire(loaded)
            self.registry.cache.release(loaded)
            raise
        self.registry.swap(entry, version, loaded, decision)
        self.registry.cache.release(loaded)
        self.registry.store.forget_between(before, decision)
        self.registry.log_loaded(loaded)
        if loaded.postponed:
            self.registry.improve(entry)
        return gate


def _same(entry: Entry, new: Entry) -> bool:
    """Whether an entry has the version that the store names."""
    return bool(entry.version and new.version and entry.version.key == new.version.key)


def check_classes(before: Decision, version: HasClasses, new_classes: bool) -> None:
    """Compare classes with those of the version that is served or, after a removal, was served last.

    Raises:
        RequestError: 409 if they differ and that was not asked for.
    """
    last = before.find(before.last)
    changes = class_changes(last, version) if last and not new_classes else None
    if changes:
        raise RequestError(409, f"the classes would change ({changes}): send ?new_classes=true if that is meant")


def find_version(name: str, decision: Decision, digest: str) -> KeptVersion:
    """The version whose digest begins with `digest`.

    Raises:
        RequestError: 404 if there is none, 422 if there are several.
    """
    found = [version for version in decision.versions if version.digest.startswith(digest)]
    if not found:
        known = ", ".join(version.digest[:SHORT] for version in decision.versions)
        raise RequestError(404, f"no version of '{name}' begins with {digest}; it has {known or 'none'}")
    if len(found) > 1:
        known = ", ".join(version.digest[:SHORT] for version in found)
        raise RequestError(422, f"{len(found)} versions of '{name}' begin with {digest}: {known}; send more of one")
    return found[0]
