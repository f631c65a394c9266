"""A model of replicas that serve many tasks, as events: arrivals, loads, batches.

Requests of one image arrive as a Poisson process, each for one of many tasks whose popularity follows Zipf's law. A
replica is one core: it takes all that waits, at most `max_batch`, loads what is not loaded, one task after the other,
and runs the batch. A full bank lets the least recently used task go.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Routing = Literal["any", "by task"]
"""A request goes to any replica, or to the one of its task."""

WARM = 5
"""Requests per slot with which the banks are filled before the clock starts."""

MOST_REPLICAS = 256


@dataclass(frozen=True)
class Load:
    """What is asked."""

    rate: float = 1000.0
    """Requests per second."""
    tasks: int = 10_000
    exponent: float = 1.0
    """Task k is asked in proportion to k ** -exponent."""
    seconds: float = 120.0
    seed: int = 0

    @property
    def popularity(self) -> NDArray[np.float64]:
        """The share of the requests of each task (tasks,)."""
        weights = np.arange(1, self.tasks + 1, dtype=float) ** -self.exponent
        return np.asarray(weights / weights.sum())


@dataclass(frozen=True)
class Replica:
    """How one core works. Times are in seconds."""

    fixed: float
    """For a batch, however large."""
    each: float
    """For each image of it."""
    load: float
    """To load a task that is not loaded; the core does nothing else meanwhile."""
    slots: int
    max_batch: int = 32

    @property
    def most(self) -> float:
        """The images per second of full batches, when nothing is loaded."""
        return self.max_batch / (self.fixed + self.max_batch * self.each)


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    replicas: int
    hits: float
    """The share of the requests whose task was loaded."""
    p50: float
    p99: float
    """Seconds until the answer."""
    mean: float
    busy: float
    """The share of the time in which the busiest replica works; above 1 it falls behind for good."""
    batch: float
    """Images per batch."""


class Bank:
    """The slots of one replica. The least recently used task goes first."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._loaded: dict[int, None] = {}

    def ask(self, task: int) -> bool:
        """Whether a task is loaded; if not, it is from now on."""
        hit = task in self._loaded
        if hit:
            del self._loaded[task]
        elif len(self._loaded) >= self.slots:
            del self._loaded[next(iter(self._loaded))]
        self._loaded[task] = None
        return hit

    def fill(self, tasks: Iterable[int]) -> None:
        """Ask for tasks before the clock starts."""
        for task in tasks:
            self.ask(task)


@dataclass
class Run:
    """What one replica did."""

    seconds: list[float]
    """How long each request took until its answer."""
    hits: int = 0
    batches: int = 0
    worked: float = 0.0


def serve(times: Sequence[float], tasks: Sequence[int], replica: Replica, bank: Bank) -> Run:
    """Answer requests that arrive at `times`, in order, each for its task."""
    run, free, i = Run([]), 0.0, 0
    while i < len(times):
        start = max(free, times[i])
        end = bisect_right(times, start, i, min(i + replica.max_batch, len(times)))
        hits = sum(map(bank.ask, tasks[i:end]))
        took = replica.fixed + replica.each * (end - i) + replica.load * (end - i - hits)
        free = start + took
        run.seconds += [free - time for time in times[i:end]]
        run.hits, run.batches, run.worked = run.hits + hits, run.batches + 1, run.worked + took
        i = end
    return run


def simulate(load: Load, replica: Replica, replicas: int, routing: Routing = "any") -> Outcome:
    """Answer a load with so many replicas, each with a queue of its own."""
    random = np.random.default_rng(load.seed)
    reach, home = np.cumsum(load.popularity), random.integers(replicas, size=load.tasks)

    def drawn(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tasks = np.minimum(np.searchsorted(reach, random.random(count)), load.tasks - 1)
        return tasks, home[tasks] if routing == "by task" else random.integers(replicas, size=count)

    banks = [Bank(replica.slots) for _ in range(replicas)]
    own = [np.flatnonzero(home == k) if routing == "by task" else np.arange(load.tasks) for k in range(replicas)]
    for bank, mine in zip(banks, own, strict=True):
        bank.fill(mine[: replica.slots][::-1].tolist())
    if max(map(len, own)) > replica.slots:
        tasks, places = drawn(WARM * replica.slots * replicas)
        for k, bank in enumerate(banks):
            bank.fill(tasks[places == k].tolist())
    count = random.poisson(load.rate * load.seconds)
    times = np.sort(random.uniform(0, load.seconds, count))
    tasks, places = drawn(count)
    runs = [
        serve(times[places == k].tolist(), tasks[places == k].tolist(), replica, bank) for k, bank in enumerate(banks)
    ]
    seconds = np.concatenate([run.seconds for run in runs])
    p50, p99 = np.percentile(seconds, (50, 99))
    return Outcome(
        replicas,
        sum(run.hits for run in runs) / count,
        float(p50),
        float(p99),
        float(seconds.mean()),
        max(run.worked for run in runs) / load.seconds,
        count / sum(run.batches for run in runs),
    )


def needed(load: Load, replica: Replica, p99: float, routing: Routing = "any") -> Outcome | None:
    """The fewest replicas that keep a p99; None if 256 do not.

    Among any replicas p99 falls with their number. With one for each task it also depends on which tasks meet, so all
    numbers are tried, up to four times those that are needed for the images alone.
    """
    low = math.ceil(load.rate / replica.most) - 1
    high = max(1, low + 1)
    if routing == "by task":
        # The first task is no less popular with more replicas.
        able = range(high, 4 * high + 1) if load.rate * load.popularity[0] < replica.most else ()
        outcomes = (simulate(load, replica, count, routing) for count in able)
        return next((outcome for outcome in outcomes if keeps(outcome, p99)), None)
    while not keeps(found := simulate(load, replica, high, routing), p99):
        low, high = high, 2 * high
        if high > MOST_REPLICAS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        tried = simulate(load, replica, middle, routing)
        if keeps(tried, p99):
            high, found = middle, tried
        else:
            low = middle
    return found


def keeps(found: Outcome, p99: float) -> bool:
    """Whether a p99 is kept, and would be in the long run."""
    return found.p99 <= p99 and found.busy < 1


def che(load: Load, slots: int) -> float:
    """The share of hits of one bank by Che's approximation (H. Che et al., IEEE JSAC 20(7), 2002).

    A task with popularity p stays for T requests after each one of its own, so it is hit with 1 - exp(-p T); T is such
    that `slots` tasks are there: sum over tasks of 1 - exp(-p T) = slots.
    """
    from scipy.optimize import brentq

    popularity = load.popularity
    if slots >= load.tasks:
        return 1.0
    stay = brentq(lambda t: float((1 - np.exp(-popularity * t)).sum()) - slots, 0, 1e12)
    return float((popularity * (1 - np.exp(-popularity * stay))).sum())
