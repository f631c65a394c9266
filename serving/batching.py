"""The batcher: it groups the images of many requests and tasks into batches.

Its threads do everything that touches a graph or a bank. A batch runs alone, unless its lane runs several at the same
time in streams. Functions given to `call` run while no batch does, so no slot is written while a batch reads it, and
once `call` is done every later batch sees the write.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from mosa_deploy.bundles.preprocess import Array
from serving.batch_sizes import fit
from serving.errors import RequestError, busy, late
from serving.items import BatchRun, Item, Lane

log = logging.getLogger("mosa_deploy.serving")

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What a thread of the batcher does next."""

    run: Callable[[], None]
    alone: bool
    """Whether nothing else may run meanwhile."""


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
        streams: int = 1,
    ) -> None:
        """`bound` is the most items that wait. `observe` is called after every batch. `deadline` is for messages.

        `coming` says how many requests are on their way to a batch, those in the queue included: no batch waits for
        more than these. At most so many `streams` run at once.
        """
        self.max_batch, self.max_wait, self.bound, self.deadline = max_batch, max_wait, bound, deadline
        self.observe, self.coming, self.streams = observe, coming, streams
        self.broken: str | None = None
        """Why this process can run nothing any more."""
        self._queues: dict[Lane, deque[Item]] = {}
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._waiting = self._running = 0
        self._alone = self._closing = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"mosa-inference-{number}", daemon=True)
            for number in range(streams)
        ]
        for thread in self._threads:
            thread.start()

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
        """Run a function while no batch runs, in the order of the calls, and before what is queued after it."""
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
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            with self._changed:
                self._running -= 1
                self._alone = False

    def _next(self) -> Job | None:
        """Wait for the next thing to do; None when the batcher is closed and nothing is left to begin."""
        with self._changed:
            while True:
                job, seconds = self._choose()
                if job is not None:
                    self._running += 1
                    self._alone = job.alone
                if job is not None or (self._closing and not (self._queues or self._calls)):
                    # There may be something to do for another thread, too: each wakes the next one.
                    self._changed.notify()
                    return job
                self._changed.wait(seconds)

    def _choose(self) -> tuple[Job | None, float | None]:
        """What to do now. If nothing: how many seconds there is nothing for, and None until another job ends."""
        if self._alone or (self._calls and self._running):
            return None, None
        if self._calls:
            return Job(partial(_complete, *self._calls.popleft()), alone=True), None
        lane = min(self._queues, key=lambda lane: self._queues[lane][0].entered, default=None)
        if lane is None:
            return None, None
        queue, idle = self._queues[lane], self._idle_streams(lane)
        if self._running and not idle:
            return None, None
        seconds = queue[0].entered + self.max_wait - time.monotonic()
        if not (self._full(lane, idle) or seconds <= 0 or self._waiting >= self.coming() or self._closing):
            return None, seconds
        items, size = self._take(lane, idle)
        return Job(partial(self._run, lane, items, size, bool(idle)), alone=not idle), None

    def _idle_streams(self, lane: Lane) -> int:
        """The streams in which the next batch of a lane can run; 0 if it has to run alone.

        A few items that wait while nothing runs are done sooner on all cores.
        """
        if lane.streams is None or not (self._running or len(self._queues[lane]) >= lane.streams.count):
            return 0
        return max(0, lane.streams.count - self._running)

    def _full(self, lane: Lane, idle: int) -> bool:
        """Whether a batch of a lane could not hold more than what waits."""
        if lane.streams is not None and not idle:
            return False
        sizes = lane.streams.sizes if lane.streams else lane.sizes
        return len(self._queues[lane]) >= min(self.max_batch, sizes[-1])

    def _take(self, lane: Lane, idle: int) -> tuple[list[Item], int]:
        """Take the next batch of a lane from its queue; its idle streams share what waits."""
        queue, sizes = self._queues[lane], lane.streams.sizes if lane.streams and idle else lane.sizes
        waiting = min(-(-len(queue) // max(1, idle)), self.max_batch)
        count, size = fit(waiting, sizes, lane.padding)
        items = [queue.popleft() for _ in range(count)]
        if not queue:
            del self._queues[lane]
        self._waiting -= count
        return items, size

    def _run(self, lane: Lane, items: list[Item], size: int, stream: bool) -> None:
        start = time.monotonic()
        live = [item for item in items if item.future.set_running_or_notify_cancel()]
        for item in live:
            if item.deadline < start:
                item.future.set_exception(late(self.deadline))
        live = [item for item in live if not item.future.done()]
        if not live:
            return
        try:
            rows = lane.run(live, size, stream)
        except Exception as fault:  # Runtimes' exceptions share no base class of their own.
            self._run_one_by_one(lane, live, stream, fault)
            return
        self._answer(live, rows, start, size)

    def _run_one_by_one(self, lane: Lane, items: list[Item], stream: bool, fault: Exception) -> None:
        """Run each item of a failed batch by itself, so that only a bad one fails."""
        size = (lane.streams.sizes if lane.streams and stream else lane.sizes)[0]
        for item in items:
            start = time.monotonic()
            if len(items) > 1:
                try:
                    self._answer([item], lane.run([item], size, stream), start, size)
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
