"""The tasks that `mosa score` asks: those that the service would serve from this store, proved and run as it would.

What shares a pass of the graph there shares it here: all probes of a backbone, and tasks with the same adapter. Tasks
that adapt the last blocks alone also share the blocks before, see `serving.score_cut`.

Nobody waits for a single image here, so whole chunks of images go to the streams of a lane, past the batcher.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from mosa_deploy.client.schema import LaneName
from mosa_deploy.errors import ConfigError, MosaError, ProviderError, StoreError, unknown_name
from serving.agreement import Agreement
from serving.batching import Batcher
from serving.candidates import CandidateList, require_files
from serving.lanes import AnyLane, SharedLane
from serving.loaded_task import LoadedTask
from serving.loading import Loader
from serving.opening import Lanes
from serving.ranking import Ranking
from serving.registry import Registry
from serving.runtime import choose
from serving.score_cut import CutLane, cut_lane, of_all, untouched, where_to_cut
from serving.settings import Settings
from serving.storage import open_files
from serving.store import TaskStore

ALL = "all"

AHEAD = 2
"""The fewest chunks of images that are asked before the first of them is answered."""


@dataclass(frozen=True, eq=False)
class Pass:
    """What runs once for each image."""

    lane: AnyLane | CutLane
    slot: int
    preprocess: Preprocess
    tasks: Sequence[Sequence[LoadedTask]]
    """The tasks that it answers for; of a lane that was cut, those of each of its slots."""

    @property
    def size(self) -> int:
        """The largest batch that its lane takes."""
        lane = self.lane.lane if isinstance(self.lane, CutLane) else self.lane
        return (lane.streams or lane).sizes[-1]

    def run(self, images: Array) -> Array:
        """Images (B, 3, H, W) -> the lane's output (B, ...)."""
        if isinstance(self.lane, CutLane):
            return self.lane.features(images)
        return self.lane.infer(images, of_all(self.slot, images), stream=self.lane.streams is not None)

    def answers(self, rows: Array) -> Iterator[tuple[LoadedTask, Array]]:
        """The lane's output (n, ...) -> the probabilities (n, K) of each task."""
        for place, tasks in enumerate(self.tasks):
            own = rows[:, place] if isinstance(self.lane, CutLane) else rows
            yield from ((task, task.probabilities(own)) for task in tasks)


Asked = Sequence[Sequence["Future[Array]"]]
"""Images that are on their way through the graphs: for each pass its batches."""


class TaskSet:
    """Loaded tasks, and the passes of the graphs that answer for them."""

    def __init__(self, tasks: Sequence[LoadedTask], lanes: Lanes, pool: Executor, streams: int) -> None:
        """`pool` runs so many batches at once."""
        self.tasks, self.lanes, self.pool, self.streams = tasks, lanes, pool, streams
        self.preprocesses: tuple[Preprocess, ...] = tuple(dict.fromkeys(map(_preprocess, tasks)))
        self.passes = _with_cuts(_whole_passes(tasks), lanes)

    @property
    def ahead(self) -> int:
        """Chunks of images to ask before the first of them is answered, so that no core waits."""
        batches = sum(-(-self.lanes.batcher.max_batch // each.size) for each in self.passes)
        return max(AHEAD, -(-AHEAD * self.streams // batches))

    def ask(self, pixels: Sequence[Pixels]) -> Asked:
        """Queue images, as each preprocess reads them (n, H, W, 3), for every task."""
        given = {own: own.normalise(each) for own, each in zip(self.preprocesses, pixels, strict=True)}
        return [self._batches(each, given[each.preprocess]) for each in self.passes]

    def _batches(self, each: Pass, images: Array) -> "list[Future[Array]]":
        starts = range(0, len(images), each.size)
        return [self.pool.submit(each.run, images[start : start + each.size]) for start in starts]

    def answers(self, asked: Asked) -> Iterator[tuple[LoadedTask, Array]]:
        """Wait for each task's probabilities of these images (n, K), in the order of the tasks.

        Raises:
            ProviderError: a graph failed.
        """
        found = dict[LoadedTask, Array]()
        for each, batches in zip(self.passes, asked, strict=True):
            found.update(each.answers(np.concatenate([_output(batch) for batch in batches])))
        yield from ((task, found[task]) for task in self.tasks)


def _output(batch: "Future[Array]") -> Array:
    try:
        return batch.result()
    except Exception as fault:  # Runtimes' exceptions share no base class of their own.
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise ProviderError(
            f"inference failed: {reason:.200}; if memory is short, MOSA_MAX_BATCH=1 takes less, and the same command"
            " goes on"
        ) from fault


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
    slots = [each.slot for each in joined]
    if not block or (cut := cut_lane(lanes, lane, block, slots, preprocess)) is None:
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
    batcher = Batcher(settings.largest_batch, max_wait=0.0, streams=settings.streams)
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
        tasks = _loaded(registry, names)
        streams = max(task.lane.streams.count if task.lane.streams else 1 for task in tasks)
        with ThreadPoolExecutor(streams, thread_name_prefix="mosa-graph") as pool:
            yield TaskSet(tasks, lanes, pool, streams)
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
