"""What `benchmarks.scale` measures of running services: images per second, memory per task, seconds to load a task."""

import asyncio
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np

from benchmarks.load import throughput, wrong
from benchmarks.serving_auto import quantised, served_by
from benchmarks.serving_speed import SENT_SIZE, Scale
from mosa_deploy.bundles.store_layout import VALIDATION, StoreLayout
from mosa_deploy.errors import ServiceError
from tests.support.load import Ask, Reply, classify, closed
from tests.support.service import HERE, Server, serve
from tests.support.tasks import CLASSES, renamed

IN_FLIGHT = 16
"""Requests that keep the graphs busy."""

DISTINCT = 4
"""Tasks that are made; the others have the same tensors under other names, and take as much memory."""

FEW = 8
"""Slots of the service whose loads are timed: each request there is for a task that had to go."""

SETTLE_SECONDS = 0.5


@dataclass(frozen=True)
class Measured:
    """The figures of one backbone. Sizes are in bytes, rates in images per second."""

    backbone: str
    served_by: str
    tasks: int
    bottleneck: int
    sent: str
    alone: float
    """One core with one request in flight."""
    core: float
    """One core with 16 in flight."""
    core_fp32: float
    two_cores: float
    """One service on two cores, which it shares with the sender of the requests."""
    two_replicas: float
    """Two services of one core each, likewise."""
    cpu: float
    """CPU seconds of a service of one core per image, with 16 in flight."""
    load: float
    """Median seconds until a task that had to go is loaded again."""
    base: float
    """A service with one task loaded."""
    task: float
    """What each further task adds."""

    @property
    def each(self) -> float:
        """The seconds that each image of a batch takes, by the times of 1 and of 16 in flight."""
        return min((IN_FLIGHT / self.core - 1 / self.alone) / (IN_FLIGHT - 1), 1 / self.core)

    @property
    def fixed(self) -> float:
        """The seconds that a batch takes besides, so that 16 images take as long as was measured."""
        return IN_FLIGHT * (1 / self.core - self.each)

    def tasks_in(self, memory: float) -> int:
        """How many tasks of the shared lane fit in so much memory."""
        return max(0, int((memory - self.base) // self.task) + 1)


@dataclass
class Tasks:
    """A store of many tasks, and requests for them."""

    root: Path
    images: Sequence[bytes]
    shift: dict[str, int]
    """Task -> its seed."""
    asks: list[Ask] = field(init=False)
    """Requests for all tasks in turn, made before the clock starts."""

    def __post_init__(self) -> None:
        count = len(self.images)
        pairs = [(name, (t + turn) % count) for turn in range(count) for t, name in enumerate(self.shift)]
        self.asks = [classify(name, image, self.images[image]) for name, image in pairs]


def make_tasks(scale: Scale, count: int, folder: Path) -> Tasks:
    """A store as an export with int8 leaves it, of so many tasks."""
    stored = quantised(scale, folder)
    layout, shift = StoreLayout(stored.maker.root), {name: seed for seed, name in enumerate(stored.archives)}
    for t in range(len(shift), count):
        source, name = f"task-{t % scale.tasks}", f"task-{t}"
        stored.maker.store(renamed(stored.archives[source], name))
        shutil.copy(layout.task(source) / VALIDATION, layout.task(name) / VALIDATION)
        shift[name] = t % scale.tasks
    return Tasks(stored.maker.root, stored.maker.images, shift)


def measure(scale: Scale, count: int, seconds: float, folder: Path) -> Measured:
    """Measure one backbone with so many tasks. Each rate is the median of `scale.rounds` legs of so many seconds."""
    tasks = make_tasks(scale, count, folder / "quantised")

    def rate(servers: Sequence[Server], in_flight: int = IN_FLIGHT) -> float:
        leg(tasks, servers, IN_FLIGHT, seconds / 4)
        return statistics.median(leg(tasks, servers, in_flight, seconds)[0] for _ in range(scale.rounds))

    with service(tasks, folder / "one", [0], active=count, prefetch=0) as server:
        base, task = fill(tasks, server)
        alone, core = rate([server], 1), rate([server])
        _, cpu = leg(tasks, [server], IN_FLIGHT, seconds)
        by = served_by(server.address)
    with service(tasks, folder / "few", [0], active=FEW, prefetch=0) as server:
        for name in tasks.shift:
            ask(tasks, server, name)
        # The first one also opens the graph.
        loads = [float(str(line["load_ms"])) / 1000 for line in server.lines() if "load_ms" in line][1:]
    with service(tasks, folder / "fp32", [0], active=count, precision="fp32") as server:
        core_fp32 = rate([server])
    with service(tasks, folder / "two", [0, 1], active=count) as server:
        two_cores = rate([server])
    with ExitStack() as both:
        servers = [both.enter_context(service(tasks, folder / f"replica-{k}", [k], active=count)) for k in (0, 1)]
        two_replicas = rate(servers)
    sent = " x ".join(map(str, SENT_SIZE))
    return Measured(
        *(scale.backbone, by, count, scale.bottleneck, sent),
        *(alone, core, core_fp32, two_cores, two_replicas, cpu),
        *(statistics.median(loads), base, task),
    )


@contextmanager
def service(tasks: Tasks, folder: Path, cores: Sequence[int], **settings: object) -> Iterator[Server]:
    """A service on some of this process's cores, with its log in `folder`."""
    folder.mkdir()
    with ExitStack() as stack:
        with pinned(cores):
            server = stack.enter_context(serve(tasks.root, folder, HERE, **settings))
        server.wait_until("ready")
        yield server


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Processes that are started meanwhile have the k-th of this process's cores only."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[k] for k in cores})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def ask(tasks: Tasks, server: Server, name: str) -> None:
    """Classify one image by a task.

    Raises:
        ServiceError: it was not answered.
    """
    response = server.classify(name, tasks.images[0])
    if not response.is_success:
        raise ServiceError(response.status_code, response.text)


def fill(tasks: Tasks, server: Server) -> tuple[float, float]:
    """Load all tasks; returns bytes of the service with one task, and bytes that each further one adds."""
    names, points = list(tasks.shift), list[tuple[int, int]]()
    for t, name in enumerate(names):
        ask(tasks, server, name)
        if t % max(1, len(names) // 8) == 0 or t == len(names) - 1:
            time.sleep(SETTLE_SECONDS)
            points.append((t + 1, server.memory()))
    counts, found = np.array(points).T
    return float(found[0]), float(np.polyfit(counts, found, 1)[0])


def leg(tasks: Tasks, servers: Sequence[Server], in_flight: int, seconds: float) -> tuple[float, float]:
    """Keep each service busy for so long; returns images per second of all, and CPU seconds of the services per image.

    Raises:
        ServiceError: an answer is wrong.
    """
    end, before = time.monotonic() + seconds, sum(map(cpu_seconds, servers))

    def asks() -> Iterator[Ask]:
        for each in cycle(tasks.asks):
            if time.monotonic() > end:
                return
            yield each

    async def all_of_them() -> list[Reply]:
        found = await asyncio.gather(*(closed(server.address, asks(), in_flight) for server in servers))
        return [reply for replies in found for reply in replies]

    replies = asyncio.run(all_of_them())
    took = sum(map(cpu_seconds, servers)) - before
    if bad := wrong(replies, tasks.shift, CLASSES):
        raise ServiceError(200, f"{bad} of {len(replies)} answers are wrong")
    return throughput(replies), took / len(replies)


def cpu_seconds(server: Server) -> float:
    """The CPU seconds that its workers have taken so far."""
    return sum(sum(worker.cpu_times()[:2]) for worker in server.workers())
