"""The inference side in this process: registry, lanes and batcher behind `serving.backend.Backend`."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.client.schema import LaneName, Task, Versions
from mosa_deploy.errors import MosaError, StoreError
from serving import metrics, tracing
from serving.agreement import Agreement
from serving.backend import Answered, Embedded, Health, Lease, Outcome, PutOptions
from serving.batching import Batcher
from serving.candidates import CandidateList, require_files
from serving.changes import TaskChanges
from serving.drift import DriftMonitor
from serving.errors import RequestError, late
from serving.follower import Follower
from serving.items import Item
from serving.lanes import SharedLane
from serving.loaded_task import LoadedTask
from serving.loading import Loader
from serving.opening import Lanes
from serving.ranking import Ranking
from serving.registry import Entry, Registry
from serving.runtime import choose
from serving.settings import Settings
from serving.storage import open_files
from serving.store import TaskStore
from serving.task_info import task_info, version_info

log = logging.getLogger("mosa_deploy.serving")

T = TypeVar("T")

CHANGERS = 4


class LocalBackend:
    """A `Backend` with the sessions, the banks and the batcher of its own."""

    def __init__(self, settings: Settings) -> None:
        """Open the store and load the tasks that are to be ready at the start.

        Raises:
            MosaError: the runtime is missing, or there is nothing to serve and nobody may add a task.
        """
        self.settings = settings
        runtimes = choose(settings.runtime, settings.precision)
        log.info("runtime: %s", runtimes)
        store = TaskStore(open_files(settings.artifacts), settings.max_upload)
        store.require_readable()
        require_files(store.files, runtimes)
        self._leased = 0
        """How many leases requests hold."""
        self.batcher = Batcher(
            settings.largest_batch,
            settings.max_wait_ms / 1000,
            settings.queue,
            settings.deadline_s,
            self._observe,
            lambda: self._leased,
            settings.streams,
        )
        metrics.queue_limit.set(settings.queue)
        lanes = Lanes(self.batcher, settings.threads, settings.active + 1, measured=not settings.max_batch)
        candidates = CandidateList(store, runtimes)
        loader = Loader(store, lanes, candidates, Agreement(store, self.batcher, settings.max_accuracy_loss))
        limits: dict[LaneName, int] = {
            "shared": settings.active,
            "folded": settings.sessions,
            "unfolded": settings.sessions,
        }
        self.registry = Registry(store, loader, limits, settings.folded, metrics.event)
        self.changes = TaskChanges(self.registry, settings)
        self.drift = DriftMonitor(settings.drift_window)
        self._changers = ThreadPoolExecutor(CHANGERS, thread_name_prefix="mosa-change")
        self.ranking = Ranking(candidates, lanes)
        self.ranking.measure(self.registry.read())
        self.registry.prefetch(settings.prefetch)
        self.follower = Follower(store.decisions, self.changes)
        if not settings.admin_keys:
            self._require_tasks()

    def _observe(self, items: Sequence[Item]) -> None:
        metrics.batch(items)
        metrics.queue.set(self.batcher.waiting)

    def _require_tasks(self) -> None:
        self.registry.store.require_tasks()
        entries = self.registry.list()
        if all(entry.refused for entry in entries):
            reasons = "; ".join(dict.fromkeys(str(entry.refused) for entry in entries))
            raise StoreError(f"no task of {self.settings.artifacts} can be served: {reasons}")

    async def lease(self, tasks: Sequence[str], seconds: float, plain: bool = False) -> dict[str, Lease | RequestError]:
        """See `Backend`."""
        end, leases = time.monotonic() + seconds, dict[str, Lease | RequestError]()
        try:
            for task in tasks:
                try:
                    leases[task] = await self._lease(self.registry.task_on(task) if plain else task, end)
                    self._leased += 1
                except RequestError as error:
                    leases[task] = error
        except BaseException:
            await self.release([lease for lease in leases.values() if isinstance(lease, Lease)])
            raise
        return leases

    async def _lease(self, task: str, end: float) -> Lease:
        while not isinstance(held := self.registry.hold(task), LoadedTask):
            # Other requests may wait for the same load when this one gives up.
            await _until(asyncio.shield(asyncio.wrap_future(held)), end, self.settings.deadline_s)
        record = held.version.record
        lane, thresholds = held.lane.kind, record.per_label.thresholds if record.per_label else None
        classes, backbone = record.classes, record.backbone.folder
        return Lease(task, record.sha256, classes, record.preprocess, lane, held, thresholds, backbone)

    async def release(self, leases: Sequence[Lease]) -> None:
        """See `Backend`."""
        self._leased -= len(leases)
        for lease in leases:
            self.registry.release(lease.handle)

    async def infer(
        self, asked: Sequence[tuple[Lease, Pixels]], seconds: float, unknown: bool = False
    ) -> list[Outcome]:
        """See `Backend`."""
        items = await self._run(asked, seconds)
        return [self._outcome(lease.handle, item, unknown) for (lease, _), item in zip(asked, items, strict=True)]

    async def embed(
        self, asked: Sequence[tuple[Lease, Pixels]], seconds: float, plain: bool = False
    ) -> list[Embedded | RequestError]:
        """See `Backend`."""
        able = [(lease, pixels) for lease, pixels in asked if lease.handle.without_features is None]
        items = iter(await self._run(able, seconds, plain) if able else ())
        return [
            RequestError(422, f"{reason}: serve it in the shared lane")
            if (reason := lease.handle.without_features)
            else self._embedded(lease.handle, next(items), plain)
            for lease, _ in asked
        ]

    async def _run(self, asked: Sequence[tuple[Lease, Pixels]], seconds: float, plain: bool = False) -> list[Item]:
        """Run images until their deadline; probes, and what is plain, share one pass of an image."""
        deadline = time.monotonic() + seconds
        items = [lease.handle.item(pixels, deadline, plain) for lease, pixels in asked]
        once: dict[tuple[object, ...], Item] = {}
        items = [once.setdefault(_identity(item), item) for item in items]
        if tracing.spans:
            tracing.spans.mark(items)
        self.batcher.submit(list(once.values()))
        waiting = [asyncio.wrap_future(item.future) for item in once.values()]
        _, pending = await asyncio.wait(waiting, timeout=max(0.0, seconds))
        for future in pending:
            future.cancel()
        if tracing.spans:
            tracing.spans.ran([(lease, item) for (lease, _), item in zip(asked, items, strict=True)])
        return items

    def _fault(self, item: Item) -> RequestError | None:
        """Why an image has no row of output; None if it has one."""
        if item.future.cancelled() or not item.future.done():
            return late(self.settings.deadline_s)
        fault = item.future.exception()
        if fault is None:
            return None
        return RequestError.of(fault) if isinstance(fault, Exception) else late(self.settings.deadline_s)

    def _outcome(self, loaded: LoadedTask, item: Item, unknown: bool) -> Outcome:
        if fault := self._fault(item):
            return fault
        row = item.future.result()
        answer = loaded.probabilities(row[None])[0]
        if not np.isfinite(answer).all():
            return _overflow(loaded)
        self.drift.add(loaded, row, answer)
        if not unknown:
            return Answered(answer, *_course(item))
        return Answered(answer, *_course(item), loaded.unknown(row, answer), loaded.without_unknown)

    def _embedded(self, loaded: LoadedTask, item: Item, plain: bool) -> Embedded | RequestError:
        if fault := self._fault(item):
            return fault
        features = loaded.features(item.future.result(), plain)
        if not np.isfinite(features).all():
            return _overflow(loaded)
        return Embedded(features, *_course(item))

    async def tasks(self) -> list[Task]:
        """See `Backend`."""
        return [self._info(entry) for entry in self.registry.list()]

    async def task(self, name: str) -> Task:
        """See `Backend`."""
        return self._info(self.registry.entry(name))

    async def put(self, name: str, content: bytes, options: PutOptions) -> Task:
        """See `Backend`."""
        entry, gate = await self._change(partial(self.changes.put, name, content, options))
        return self._info(entry).model_copy(update={"gate": gate})

    async def remove(self, name: str, force: bool) -> None:
        """See `Backend`."""
        await self._change(partial(self.changes.remove, name, force))

    async def versions(self, name: str) -> Versions:
        """See `Backend`. A removed task has versions too: a rollback brings it back."""
        with self.registry.lock:
            entry = self.registry.entries.get(name) or self.registry.entry(name)
        return Versions(versions=tuple(map(partial(version_info, entry.decision), entry.decision.versions)))

    async def rollback(self, name: str, digest: str | None, new_classes: bool) -> Task:
        """See `Backend`."""
        return self._info(await self._change(partial(self.changes.rollback, name, digest, new_classes)))

    async def pin(self, name: str, pinned: bool) -> Task:
        """See `Backend`."""
        return self._info(await self._change(partial(self.changes.pin, name, pinned)))

    async def health(self) -> Health:
        """See `Backend`."""
        return Health(alive=self.batcher.broken is None, ready=self.batcher.broken is None)

    async def close(self) -> None:
        """See `Backend`."""
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """Finish everything that is queued, and stop."""
        self.follower.close()
        self._changers.shutdown()
        self.batcher.close()
        self.registry.close()
        self.registry.store.files.close()

    async def _change(self, action: Callable[[], T]) -> T:
        try:
            # A change that has begun is finished even if its sender disconnects.
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._changers, action))
        except MosaError as fault:
            raise RequestError.of(fault) from None

    def _info(self, entry: Entry) -> Task:
        return task_info(entry, self.registry, self.ranking)


def _course(item: Item) -> tuple[float, float, int]:
    """Seconds in the queue, seconds in the graph, and the images of the batch, of an image that ran."""
    assert item.batch is not None
    return item.batch.start - item.entered, item.batch.seconds, item.batch.images


def _overflow(loaded: LoadedTask) -> RequestError:
    return RequestError(503, f"'{loaded.version.record.task}' overflows on this image: tune it again")


def _identity(item: Item) -> tuple[object, ...]:
    """A key for items whose output is the same, so that one of them is enough."""
    if not isinstance(item.lane, SharedLane):
        return (id(item),)
    return id(item.lane), item.lane.pass_of(item.slot), id(item.pixels), item.preprocess


async def _until(awaited: "asyncio.Future[None]", end: float, deadline: float) -> None:
    """Wait for a load until `end`; raises RequestError if it fails or takes longer."""
    try:
        await asyncio.wait_for(awaited, max(0.0, end - time.monotonic()))
    except TimeoutError:
        raise late(deadline) from None
    except MosaError as fault:
        raise RequestError.of(fault) if isinstance(fault, RequestError) else RequestError(503, str(fault)) from None
