"""The tasks that `mosa score` asks: those that the service would serve from this store, proved and run as it would.

What shares a pass of the graph there shares it here: all probes of a backbone, and tasks with the same adapter. Tasks
that adapt the last blocks alone also share the blocks before, see `serving.score_cut`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from mosa_deploy.client.schema import LaneName
from mosa_deploy.errors import ConfigError, MosaError, StoreError, unknown_name
from serving.agreement import Agreement
from serving.batching import Batcher, Item, Lane
from serving.candidates import CandidateList, require_files
from serving.lanes import SharedLane
from serving.loaded_task import LoadedTask, outputs_of
from serving.loading import Loader
from serving.opening import Lanes
from serving.ranking import Ranking
from serving.registry import Registry
from serving.runtime import choose
from serving.score_cut import CutLane, cut_lane, untouched, where_to_cut
from serving.settings import Settings
from serving.storage import open_files
from serving.store import TaskStore

ALL = "all"


@dataclass(frozen=True, eq=False)
class Pass:
    """What runs once for each image."""

    lane: Lane
    slot: int
    preprocess: Preprocess
    tasks: Sequence[Sequence[LoadedTask]]
    """The tasks that it answers for; of a lane that was cut, those of each of its slots."""

    def item(self, pixels: Pixels) -> Item:
        """Prepare an image (H, W, 3)."""
        return Item(self.lane, pixels, self.preprocess, self.slot, deadline=math.inf)

    def answers(self, rows: Array) -> Iterator[tuple[LoadedTask, Array]]:
        """The lane's output (n, ...) -> the probabilities (n, K) of each task."""
        for place, tasks in enumerate(self.tasks):
            own = rows[:, place] if isinstance(self.lane, CutLane) else rows
            yield from ((task, task.probabilities(own)) for task in tasks)


class Asked(NamedTuple):
    """Images that are on their way through the graphs, by the pass that answers them."""

    passes: list[list[Item]]


class TaskSet:
    """Loaded tasks, and the passes of the graphs that answer for them."""

    def __init__(self, tasks: Sequence[LoadedTask], lanes: Lanes) -> None:
        self.tasks, self.lanes = tasks, lanes
        self.preprocesses: tuple[Preprocess, ...] = tuple(dict.fromkeys(map(_preprocess, tasks)))
        self.passes = _with_cuts(_whole_passes(tasks), lanes)

    def ask(self, images: Sequence[Sequence[Pixels]]) -> Asked:
        """Queue images, each as the preprocesses read it, for every task."""
        asked = []
        for each in self.passes:
            place = self.preprocesses.index(each.preprocess)
            asked.append([each.item(pixels[place]) for pixels in images])
        self.lanes.batcher.submit([item for items in asked for item in items], bounded=False)
        return Asked(asked)

    def answers(self, asked: Asked) -> Iterator[tuple[LoadedTask, Array]]:
        """Wait for each task's probabilities of these images (n, K), in the order of the tasks.

        Raises:
            RequestError: a graph failed.
        """
        found = dict[LoadedTask, Array]()
        for each, items in zip(self.passes, asked.passes, strict=True):
            found.update(each.answers(outputs_of(items)))
        yield from ((task, found[task]) for task in self.tasks)


def _whole_passes(tasks: Sequence[LoadedTask]) -> list[Pass]:
    """One pass for tasks that read the same of a graph."""
    alike: dict[tuple[object, ...], list[LoadedTask]] = {}
    for task in tasks:
        own = task.lane.pass_of(task.slot) if isinstance(task.lane, SharedLane) else task.slot
        alike.setdefault((id(task.lane), own, _preprocess(task)), []).append(task)
    return [Pass(first.lane, first.slot, _preprocess(first), [[first, *more]]) for first, *more in alike.values()]


def _with_cuts(passes: Sequence[Pass], lanes: Lanes) -> list[Pass]:
    """The passes, of which those that share blocks are one pass of a lane that was cut, if that saves anything."""
    groups: dict[tuple[object, ...], list[Pass]] = {}
    for each in passes:
        groups.setdefault((id(each.lane), each.preprocess), []).append(each)
    return [made for group in groups.values() for made in _cut(group, lanes)]


def _cut(passes: Sequence[Pass], lanes: Lanes) -> Sequence[Pass]:
    """The passes of one lane, some of them joined."""
    lane, preprocess = passes[0].lane, passes[0].preprocess
    if not (isinstance(lane, SharedLane) and lane.bank.layout.by_slot):
        return passes
    firsts = [min(untouched(task.version.record) for (tasks,) in [each.tasks] for task in tasks) for each in passes]
    block = where_to_cut(firsts)
    joined = [each for each, first in zip(passes, firsts, strict=True) if first >= block]
    if not block or (cut := cut_lane(lanes, lane, block, [each.slot for each in joined], preprocess)) is None:
        return passes
    tasks = [task for each in joined for task in each.tasks]
    return [each for each in passes if each not in joined] + [Pass(cut, lane.empty, preprocess, tasks)]


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
        yield TaskSet(_loaded(registry, names), lanes)
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
