"""The tasks that `mosa score` asks: those that the service would serve from this store, proved and run as it would.

What shares a pass of the graph there shares it here: all probes of a backbone, and adapters as slots of one batch.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from mosa_deploy.client.schema import LaneName
from mosa_deploy.errors import ConfigError, MosaError, StoreError, unknown_name
from serving.agreement import Agreement
from serving.batching import Batcher, Item
from serving.candidates import CandidateList, require_files
from serving.lanes import SharedLane
from serving.loaded_task import LoadedTask, outputs_of
from serving.loading import Loader
from serving.opening import Lanes
from serving.ranking import Ranking
from serving.registry import Registry
from serving.runtime import choose
from serving.settings import Settings
from serving.storage import open_files
from serving.store import TaskStore

ALL = "all"


class Asked(NamedTuple):
    """Images that are on their way through the graphs, by the pass that answers them."""

    passes: list[list[Item]]


class TaskSet:
    """Loaded tasks, and the passes of the graphs that answer for them."""

    def __init__(self, tasks: Sequence[LoadedTask], batcher: Batcher) -> None:
        self.tasks, self.batcher = tasks, batcher
        self.preprocesses: tuple[Preprocess, ...] = tuple(dict.fromkeys(map(_preprocess, tasks)))
        passes: dict[tuple[object, ...], list[LoadedTask]] = {}
        for task in tasks:
            own = task.lane.pass_of(task.slot) if isinstance(task.lane, SharedLane) else task.slot
            passes.setdefault((id(task.lane), own, _preprocess(task)), []).append(task)
        self._passes = list(passes.values())

    def ask(self, images: Sequence[Sequence[Pixels]]) -> Asked:
        """Queue images, each as the preprocesses read it, for every task."""
        asked = []
        for task, *_ in self._passes:
            place = self.preprocesses.index(_preprocess(task))
            asked.append([task.item(pixels[place], deadline=math.inf) for pixels in images])
        self.batcher.submit([item for items in asked for item in items], bounded=False)
        return Asked(asked)

    def answers(self, asked: Asked) -> Iterator[tuple[LoadedTask, Array]]:
        """Wait for each task's probabilities of these images (n, K).

        Raises:
            RequestError: a graph failed.
        """
        for tasks, items in zip(self._passes, asked.passes, strict=True):
            rows = outputs_of(items)
            yield from ((task, task.probabilities(rows)) for task in tasks)


@contextmanager
def opened(settings: Settings, wanted: Sequence[str]) -> Iterator[TaskSet]:
    """Load and prove the tasks of the store that are named; `all` means all.

    Raises:
        ConfigError: there is no such task.
        MosaError: the store cannot be read, or tasks cannot be served; the message names all of them.
    """
    runtimes = choose(settings.runtime, settings.precision)
    store = TaskStore(open_files(settings.artifacts), settings.max_upload)
    store.require_readable()
    store.require_tasks()
    require_files(store.files, runtimes)
    batcher = Batcher(settings.largest_batch, max_wait=0.0)
    most = len(store.names())
    lanes = Lanes(batcher, settings.threads, most + 1, measured=not settings.max_batch)
    candidates = CandidateList(store, runtimes)
    loader = Loader(store, lanes, candidates, Agreement(store, batcher, settings.max_accuracy_loss))
    limits: dict[LaneName, int] = {"shared": most, "folded": most, "unfolded": most}
    registry = Registry(store, loader, limits, settings.folded)
    try:
        served = list(registry.read())
        names = _chosen(registry, wanted)
        Ranking(candidates, lanes).measure(served)
        yield TaskSet(_loaded(registry, names), batcher)
    finally:
        batcher.close()
        registry.close()
        store.files.close()


def _chosen(registry: Registry, wanted: Sequence[str]) -> list[str]:
    known = [entry.name for entry in registry.list()]
    if ALL in wanted:
        return known
    faults = [unknown_name("task", name, known) for name in wanted if name not in known]
    if faults:
        raise ConfigError("; ".join(faults))
    return list(dict.fromkeys(wanted))


def _loaded(registry: Registry, names: Sequence[str]) -> list[LoadedTask]:
    loaded, faults = [], []
    for name in names:
        try:
            loaded.append(registry.acquire(name))
        except MosaError as fault:
            faults.append(f"{name}: {fault}")
    if faults:
        raise StoreError(f"{'; '.join(faults)}; repair them, or name the others with --tasks")
    return loaded


def _preprocess(task: LoadedTask) -> Preprocess:
    return task.version.record.preprocess
