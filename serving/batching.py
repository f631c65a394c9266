"""The batcher: it groups the images of many requests and tasks into batches, one graph at a time.

One thread does everything that touches a graph or a bank. Functions given to `call` run between two batches, so no
slot is written while a batch reads it, and once `call` is done every later batch sees the write.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from serving.errors import RequestError, busy, late

log = logging.getLogger("mosa_deploy.serving")

T = TypeVar("T")

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes. Each is at most half larger than the one before (after 2), so that padding wastes little."""


class Lane(Protocol):
    """One graph."""

    @property
    def kind(self) -> str:
        """Its name in answers and metrics."""
        ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes that it takes, ascending."""
        ...

    @property
    def padding(self) -> float:
        """The share of a batch that may be padding when a smaller batch would need less."""
        ...

    def device_lost(self) -> bool:
        """Whether its device no longer works in this process. Asked when a run has failed."""
        ...

    def run(self, items: Sequence["Item"], size: int) -> Array:
        """Run n <= `size` items as a batch of `size`; returns the graph's output for each (n, ...)."""
        ...


@dataclass(eq=False)
class Item:
    """An image (H, W, 3) to run through a lane. `future` becomes its output."""

    lane: Lane
    pixels: Pixels
    preprocess: Preprocess
    slot: int
    deadline: float
    """On the clock of `time.monotonic`."""
    future: "Future[Array]" = field(default_factory=Future)
    entered: float = field(default_factory=time.monotonic)
    trace: object | None = None
    """What `serving.spans` knows its request by, if that is traced."""
    ready: float = 0.0
    """When the input of its batch was ready; lanes note it on the first item of a batch."""
    batch: "BatchRun | None" = None
    """Its batch, once that has run."""


@dataclass(frozen=True, eq=False)
class BatchRun:
    """A batch that ran. Its times are on the clock of `time.monotonic`."""

    images: int
    size: int
    """With the padding."""
    start: float
    ready: float
    """When its input was ready."""
    end: float
    traces: tuple[object, ...]
    """Those of its items."""

    @property
    def seconds(self) -> float:
        """Seconds in the graph, its input included."""
        return self.end - self.start


def sizes_up_to(largest: int) -> tuple[int, ...]:
    """The batch sizes up to `largest`, which is one of them."""
    return (*(step for step in STEPS if step < largest), largest)


def fit(waiting: int, sizes: Sequence[int], padding: float) -> tuple[int, int]:
    """How many of the waiting items to run now, and the size to pad their batch to.

    Padding computes for nothing; running fewer items makes the rest wait. So the batch is padded up if at most that
    share of it is padding, or if a second batch for the rest would cost as much.
    """
    above, below = smallest(waiting, sizes), max((size for size in sizes if size <= waiting), default=None)
    if below is None:
        assert above is not None
        return waiting, above
    if above is None:
        return below, below
    rest = smallest(waiting - below, sizes)
    if waiting >= (1 - padding) * above or (rest is not None and below + rest >= above):
        return waiting, above
    return below, below


def smallest(waiting: int, sizes: Sequence[int]) -> int | None:
    """The smallest size that holds `waiting` items; None if none does."""
    return min((size for size in sizes if size >= waiting), default=None)


class Batcher:
    """Runs items in batches of a few sizes, each of one lane; the lane with the oldest item comes first."""

    def __init__(
        self,
        max_batch: int = 32,
        max_wait: float = 0.002,
        bound: int = 512,
        deadline: float = 30.0,
        observe: Callable[[Sequence[Item]], None] | None = None,
        coming: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """`bound` is the most items that wait. `observe` is called after every batch. `deadline` is for messages.

        `coming` says how many requests are on their way to a batch, those in the queue included: no batch waits for
        more than these.
        """
        self.max_batch, self.max_wait, self.bound, self.deadline = max_batch, max_wait, bound, deadline
        self.observe, self.coming = observe, coming
        self.broken: str | None = None
        """Why this process can run nothing any more."""
        self._queues: dict[Lane, deque[Item]] = {}
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._waiting = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mosa-inference", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of items in the queues."""
        return self._waiting

    def submit(self, items: Sequence[Item], bounded: bool = True) -> None:
        """Queue items. The future of each becomes its row of the lane's output, or the error.

        A change of tasks is not `bounded`: a full queue must not keep a repaired version out.

        Raises:
            RequestError: 503 if the queue is too full for all of them; none is queued then.
        """
        with self._changed:
            if self._closing:
                raise busy("the service is stopping")
            if bounded and self._waiting + len(items) > self.bound:
                raise busy(f"{self._waiting} images are waiting")
            for item in items:
                self._queues.setdefault(item.lane, deque()).append(item)
            self._waiting += len(items)
            self._changed.notify()

    def call(self, action: Callable[[], T]) -> "Future[T]":
        """Run a function on the inference thread, between two batches and in the order of the calls."""
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise busy("the service is stopping")
            self._calls.append((future, action))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish everything that is queued, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            task()

    def _next(self) -> Callable[[], None] | None:
        """Wait for the next thing to do; None when the batcher is closed and all is done."""
        with self._changed:
            while True:
                if self._calls:
                    future, action = self._calls.popleft()
                    return lambda: _complete(future, action)
                lane = min(self._queues, key=lambda lane: self._queues[lane][0].entered, default=None)
                if lane is not None:
                    queue = self._queues[lane]
                    remaining = queue[0].entered + self.max_wait - time.monotonic()
                    full = len(queue) >= min(self.max_batch, lane.sizes[-1])
                    if full or remaining <= 0 or self._waiting >= self.coming() or self._closing:
                        items, size = self._take(lane)
                        return lambda: self._run(lane, items, size)
                    self._changed.wait(remaining)
                elif self._closing:
                    return None
                else:
                    self._changed.wait()

    def _take(self, lane: Lane) -> tuple[list[Item], int]:
        queue = self._queues[lane]
        count, size = fit(min(len(queue), self.max_batch), lane.sizes, lane.padding)
        items = [queue.popleft() for _ in range(count)]
        if not queue:
            del self._queues[lane]
        self._waiting -= count
        return items, size

    def _run(self, lane: Lane, items: list[Item], size: int) -> None:
        start = time.monotonic()
        live = [item for item in items if item.future.set_running_or_notify_cancel()]
        for item in live:
            if item.deadline < start:
                item.future.set_exception(late(self.deadline))
        live = [item for item in live if not item.future.done()]
        if not live:
            return
        try:
            rows = lane.run(live, size)
        except Exception as fault:  # Runtimes' exceptions share no base class of their own.
            self._run_one_by_one(lane, live, fault)
            return
        self._answer(live, rows, start, size)

    def _run_one_by_one(self, lane: Lane, items: list[Item], fault: Exception) -> None:
        """Run each item of a failed batch by itself, so that only a bad one fails."""
        for item in items:
            start = time.monotonic()
            if len(items) > 1:
                try:
                    self._answer([item], lane.run([item], lane.sizes[0]), start, lane.sizes[0])
                    continue
                except Exception as own_fault:  # As above.
                    fault = own_fault
            reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
            log.error("inference failed: %s", reason)
            if lane.device_lost():
                # Every session of the process is lost with it: only a new process helps.
                self.broken = reason
            item.future.set_exception(RequestError(503, f"inference failed: {reason:.200}"))

    def _answer(self, items: list[Item], rows: Array, start: float, size: int) -> None:
        traces = tuple(item.trace for item in items if item.trace is not None)
        batch = BatchRun(len(items), size, start, max(start, items[0].ready), time.monotonic(), traces)
        for item in items:
            item.batch = batch
        if self.observe:
            self.observe(items)
        for item, row in zip(items, rows, strict=True):
            item.future.set_result(row)


def _complete(future: "Future[Any]", action: Callable[[], Any]) -> None:
    """Run the action, and give its result or its exception to the future."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = action()
    except BaseException as fault:
        future.set_exception(fault)
    else:
        future.set_result(result)
