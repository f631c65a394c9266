"""Warm-up: every batch size of a lane runs before the lane serves, and on a CPU the sizes that pay are found.

A larger batch spreads the cost of a run over more images, until its intermediate values no longer fit into the caches.
And cores that compute one image together wait for each other, which they do not if each has a stream of images of its
own. What is faster depends on the backbone, the size of the images, the precision and the CPU, so it is measured.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import MosaError, StoreError
from mosa_deploy.runtimes.names import ON_GPU
from mosa_deploy.runtimes.runner import Runner
from mosa_deploy.utils.processes import trim_memory
from serving.batching import Batcher
from serving.items import Item, Streams
from serving.lanes import AnyLane

log = logging.getLogger("mosa_deploy.serving")

SLOWER = 1.03
"""A size whose time per image is above this many times the shortest one does not pay."""

LONG = 0.25
"""Seconds of a run after which one is enough: noise is a small share of it."""

LEAST, MOST, SECONDS = 2, 10, 0.1
"""The fewest and the most times that a shorter one is repeated, and for how many seconds in between."""

GAIN = 1.0
"""The largest share of the time per image on all cores that streams may take here, where they start and end together.
In the service none waits for another, so they gain more."""

PER_STREAM = (1, 2, 4)
"""The images per batch of a stream that are tried."""


@dataclass(frozen=True)
class Offer:
    """Streams that a lane could have."""

    count: int
    open: Callable[[], Runner]
    """Opens a runner of the same graph that is made for so many runs at once."""


def warm(
    lane: AnyLane, preprocess: Preprocess, slot: int, batcher: Batcher, measured: bool, offer: Offer | None = None
) -> None:
    """Run every batch size, between the batches of other lanes; on a CPU keep those that pay, if it is `measured`.

    With an `offer` the lane runs batches in streams, if that is faster.

    Raises:
        StoreError: the graph does not take images of this size.
    """
    blank: NDArray[np.uint8] = np.zeros((*preprocess.size, 3), dtype=np.uint8)

    def run(size: int, stream: bool = False) -> object:
        return lane.run([Item(lane, blank, preprocess, slot, deadline=math.inf)], size, stream)

    def alone(size: int) -> float:
        return batcher.call(partial(timed, partial(run, size))).result()

    try:
        if not measured or lane.plan.runtime in ON_GPU:
            for size in lane.sizes:
                alone(size)
            return
        found: Mapping[int, float] = worthwhile(lane.sizes, alone)
        if offer is not None:
            with ThreadPoolExecutor(offer.count) as threads:

                def streams(size: int) -> float:
                    sizes = [size] * offer.count
                    action = partial(timed, lambda: list(threads.map(partial(run, stream=True), sizes)))
                    return batcher.call(action).result() / offer.count

                found = stream_if_faster(lane, found, offer, alone, streams)
    except MosaError:
        raise
    except Exception as fault:  # ONNX Runtime's exceptions share no base class of their own.
        reason = str(fault).splitlines()[0]
        raise StoreError(f"the graph does not take images of {preprocess.size}: {reason}") from fault
    lane.plan = replace(lane.plan, sizes=tuple(found))
    # What the larger sizes took is not needed again, nor what was timed before and closed.
    lane.release()
    trim_memory()
    log.info("the %s lane by %s takes batches of %s", lane.kind, lane.plan, _said(lane))


def _said(lane: AnyLane) -> str:
    sizes, streams = ", ".join(map(str, lane.sizes)), lane.streams
    if streams is None:
        return sizes
    return f"{sizes}; from {streams.count} images on {streams.count} streams of {', '.join(map(str, streams.sizes))}"


def stream_if_faster(
    lane: AnyLane,
    found: Mapping[int, float],
    offer: Offer,
    alone: Callable[[int], float],
    streams: Callable[[int], float],
) -> Mapping[int, float]:
    """Let a lane run batches in streams if that is faster, see `GAIN`.

    `found` are the sizes that pay on all cores, with their seconds per image. `alone` runs such a batch, and `streams`
    one in each stream; they return the seconds, divided by the number of batches. Returns the sizes that pay now.
    """
    sizes = [size for size in PER_STREAM if size == 1 or size * offer.count <= lane.sizes[-1]]
    lane.use_streams(offer.open(), Streams(offer.count, tuple(sizes)))
    times = worthwhile(sizes, streams)
    best = min(found, key=found.__getitem__)
    # Something else may have run before, and no longer.
    if min(times.values()) > GAIN * min(found[best], shortest(partial(alone, best)) / best):
        lane.use_streams(None, None)
        return found
    lane.plan = replace(lane.plan, streams=Streams(offer.count, tuple(times)))
    return {size: each for size, each in found.items() if size < offer.count}


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
