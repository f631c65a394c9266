"""Warm-up: every batch size of a lane runs before the lane serves, and on a CPU the sizes that pay are found.

A larger batch spreads the cost of a run over more images, until its intermediate values no longer fit into the caches.
Where that happens depends on the backbone, the size of the images, the precision and the CPU, so it is measured.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import StoreError
from mosa_deploy.runtimes.names import ON_GPU
from serving.batching import Batcher, Item
from serving.lanes import AnyLane

log = logging.getLogger("mosa_deploy.serving")

SLOWER = 1.03
"""A size whose time per image is above this many times the shortest one does not pay."""

LONG = 0.25
"""Seconds of a run after which one is enough: noise is a small share of it."""

LEAST, MOST, SECONDS = 2, 10, 0.1
"""The fewest and the most times that a shorter one is repeated, and for how many seconds in between."""


def warm(lane: AnyLane, preprocess: Preprocess, slot: int, batcher: Batcher, measured: bool) -> None:
    """Run every batch size, between the batches of other lanes; on a CPU keep those that pay, if it is `measured`.

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
        sizes = tuple(worthwhile(lane.sizes, run))
    except Exception as fault:  # ONNX Runtime's exceptions share no base class of their own.
        reason = str(fault).splitlines()[0]
        raise StoreError(f"the graph does not take images of {preprocess.size}: {reason}") from fault
    lane.plan = replace(lane.plan, sizes=sizes)
    log.info("the %s lane by %s takes batches of %s", lane.kind, lane.plan, ", ".join(map(str, sizes)))


def worthwhile(sizes: Iterable[int], run: Callable[[int], float]) -> list[int]:
    """The sizes, ascending, whose time per image is close to the shortest among the smaller ones.

    `run` runs a batch and returns its seconds. Nothing larger is tried after two sizes in a row that do not pay.
    """
    kept, best, slow = list[int](), math.inf, 0
    for size in sizes:
        each = shortest(partial(run, size)) / size
        if each > SLOWER * best:
            slow += 1
            if slow == 2:
                break
            continue
        kept.append(size)
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
