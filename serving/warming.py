"""Warm-up: every batch size of a lane runs before the lane serves, and on a CPU the sizes that pay are found.

A larger batch spreads the cost of a run over more images, until its intermediate values no longer fit into the caches.
And cores that compute one image together wait for each other, which they do not if each has an image of its own. What
is faster depends on the backbone, the size of the images, the precision and the CPU, so it is measured.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import MosaError, StoreError
from mosa_deploy.runtimes.names import ON_GPU
from mosa_deploy.runtimes.runner import Runner
from mosa_deploy.runtimes.split import SplitRunner
from serving.batching import Batcher, Item
from serving.lanes import AnyLane

log = logging.getLogger("mosa_deploy.serving")

SLOWER = 1.03
"""A size whose time per image is above this many times the shortest one does not pay."""

LONG = 0.25
"""Seconds of a run after which one is enough: noise is a small share of it."""

LEAST, MOST, SECONDS = 2, 10, 0.1
"""The fewest and the most times that a shorter one is repeated, and for how many seconds in between."""

GAIN = 0.95
"""The largest share of the time per image of whole batches that parts may take, which need the memory of a second
session."""

PER_PART = (1, 2, 4)
"""The images per part that are tried."""


@dataclass(frozen=True)
class Parts:
    """How a batch could be run in parts at the same time."""

    count: int
    open: Callable[[], Runner]
    """Opens a runner of the same graph that is made for so many runs at once."""


def warm(
    lane: AnyLane, preprocess: Preprocess, slot: int, batcher: Batcher, measured: bool, parts: Parts | None = None
) -> None:
    """Run every batch size, between the batches of other lanes; on a CPU keep those that pay, if it is `measured`.

    With `parts` the lane runs batches in parts, if that is faster.

    Raises:
        StoreError: the graph does not take images of this size.
    """
    blank: NDArray[np.uint8] = np.zeros((*preprocess.size, 3), dtype=np.uint8)

    def run(size: int) -> float:
        items = [Item(lane, blank, preprocess, slot, deadline=math.inf)]
        return batcher.call(partial(timed, partial(lane.run, items, size))).result()

    try:
        if not measured or lane.plan.runtime in ON_GPU:
            for size in lane.sizes:
                run(size)
            return
        found: Mapping[int, float] = worthwhile(lane.sizes, run)
        if parts is not None:
            found = split_if_faster(lane, found, parts, run)
    except MosaError:
        raise
    except Exception as fault:  # ONNX Runtime's exceptions share no base class of their own.
        reason = str(fault).splitlines()[0]
        raise StoreError(f"the graph does not take images of {preprocess.size}: {reason}") from fault
    lane.plan = replace(lane.plan, sizes=tuple(found))
    log.info("the %s lane by %s takes batches of %s", lane.kind, lane.plan, _said(lane))


def _said(lane: AnyLane) -> str:
    sizes, graph = ", ".join(map(str, lane.sizes)), lane.graph
    return f"{sizes}; from {graph.count} on in {graph.count} parts" if isinstance(graph, SplitRunner) else sizes


def split_if_faster(
    lane: AnyLane, whole: Mapping[int, float], parts: Parts, run: Callable[[int], float]
) -> Mapping[int, float]:
    """Let a lane run batches in parts if that is faster by `GAIN`.

    `whole` are the sizes that pay without parts. Returns those that pay now, with their seconds per image.
    """
    graph, count = lane.graph, parts.count
    split = SplitRunner(graph, parts.open(), count)
    lane.use(split)
    times = worthwhile([size for each in PER_PART if (size := each * count) <= lane.sizes[-1]], run)
    lane.use(graph)
    best = min(whole, key=whole.__getitem__)
    # Something else may have run before, and no longer.
    if min(times.values()) > GAIN * min(whole[best], shortest(partial(run, best)) / best):
        return whole
    lane.use(split)
    return {size: each for size, each in whole.items() if size < count} | times


def worthwhile(sizes: Iterable[int], run: Callable[[int], float]) -> dict[int, float]:
    """The sizes, ascending, whose time per image is close to the shortest among the smaller ones: size -> seconds.

    `run` runs a batch and returns its seconds. Nothing larger is tried after two sizes in a row that do not pay.
    """
    kept, best, slow = dict[int, float](), math.inf, 0
    for size in sizes:
        each = shortest(partial(run, size)) / size
        if each > SLOWER * best:
            slow += 1
            if slow == 2:
                break
            continue
        kept[size] = each
        best, slow = min(best, each), 0
    return kept


def shortest(run: Callable[[], float]) -> float:
    """The shortest time of a few runs, each of which returns its seconds."""
    took = [run()]
    while took[0] <= LONG and len(took) < MOST and (len(took) < LEAST or sum(took) < SECONDS):
        took.append(run())
    return min(took)


def timed(action: Callable[[], object]) -> float:
    """The seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
