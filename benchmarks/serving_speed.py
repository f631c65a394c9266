"""Parts of `benchmarks.serving` on speed: against a bare session, with many tasks, and under load."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.load import arriving, even, poisson, throughput, wrong
from mosa_deploy.backbones.load import Weights
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.store_layout import StoreLayout
from mosa_deploy.graphs.adapter_weights import adapter_weights, layout_of
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.runtimes.shared import SharedRunner
from mosa_deploy.utils.intervals import ratio_interval
from tests.support.load import Ask, classify, closed
from tests.support.service import HERE, Server, serve
from tests.support.tasks import CLASSES, TaskMaker, picture

Figures = dict[str, Any]

EVENT_LOOP = "CPU ms an image, event loop (HTTP, multipart, routes, JSON, log)"

SENT_SIZE = (240, 320)
"""Width and height of the images that are sent."""


@dataclass(frozen=True)
class Scale:
    """The size of the measurements."""

    backbone: str
    bottleneck: int
    tasks: int
    images: int
    """The largest number of images in flight."""
    leg: int
    """Number of requests in a leg, after which the other side is measured."""
    rounds: int
    arrivals: int
    """Number of requests in an open-loop load."""
    weights: Path | None = None
    """The file of the backbone's weights; random ones, or those of the package, if None."""
    side: int | None = None
    """The side of the backbone's images in pixels; None is its own."""


@dataclass
class Bench:
    """A running service with its tasks, all in the shared lane."""

    scale: Scale
    maker: TaskMaker
    server: Server
    asks: dict[str, list[Ask]]
    """Task -> one request per probe image."""
    shift: dict[str, int]

    @property
    def names(self) -> list[str]:
        """The tasks."""
        return list(self.asks)

    def mix(self, count: int, names: Sequence[str]) -> list[Ask]:
        """`count` requests that cycle through the tasks and the images."""
        images = len(self.asks[names[0]])
        return [self.asks[name][i % images] for i, name in enumerate(islice(cycle(names), count))]

    def leg(self, names: Sequence[str], in_flight: int) -> tuple[float, int]:
        """(answers per second, number of wrong answers) of a closed-loop load."""
        replies = asyncio.run(closed(self.server.address, self.mix(self.scale.leg, names), in_flight))
        return throughput(replies), wrong(replies, self.shift, CLASSES)


@dataclass(frozen=True)
class Stored:
    """A store with tasks."""

    scale: Scale
    maker: TaskMaker
    archives: dict[str, Archive]
    """Task -> its bundle. The seed of a task is its place here."""

    @classmethod
    def make(cls, scale: Scale, folder: Path, count: int = 16) -> "Stored":
        """Make the tasks, whose answers to `count` images are known."""
        images = tuple(picture(seed, size=SENT_SIZE) for seed in range(count))
        weights = Weights("file", scale.weights) if scale.weights else None
        maker = TaskMaker(folder / "store", scale.backbone, images, weights, scale.side)
        names = [f"task-{t}" for t in range(scale.tasks)]
        archives = {name: maker.make(name, seed, scale.bottleneck) for seed, name in enumerate(names)}
        for archive in archives.values():
            maker.store(archive)
        return cls(scale, maker, archives)

    @contextmanager
    def serve(self, folder: Path, precision: str) -> Iterator[Bench]:
        """Start a service with its log in `folder`, and warm it up."""
        images, names = self.maker.images, list(self.archives)
        asks = {name: [classify(name, i, content) for i, content in enumerate(images)] for name in names}
        settings = {"max_batch": self.scale.images, "deadline_s": 120, "precision": precision}
        with serve(self.maker.root, folder, HERE, **settings) as server:
            server.wait_until("ready")
            made = Bench(self.scale, self.maker, server, asks, {name: seed for seed, name in enumerate(names)})
            made.leg(names, self.scale.images)
            yield made


@contextmanager
def bench(scale: Scale, folder: Path) -> Iterator[Bench]:
    """Make the tasks, and serve them in fp32."""
    with Stored.make(scale, folder).serve(folder, "fp32") as made:
        yield made


def compare(sides: Mapping[str, Callable[[], float]], rounds: int) -> Figures:
    """Measure two sides in turn; returns both, and the ratio of the first to the second with its 95 % interval."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: 1 if i % 2 else -1]:
            found[name].append(sides[name]())
    first, second = found.values()
    ratio, low, high = ratio_interval(np.array(first) / np.array(second))
    return {name: float(np.median(values)) for name, values in found.items()} | {
        "ratio": ratio,
        "low": low,
        "high": high,
        "rounds": rounds,
    }


def against_bare(made: Bench) -> Figures:
    """Throughput over HTTP against a bare session with the same graph, banks, threads and batch sizes.

    The share of time that the service spends in the graph is measured too; it does not depend on the machine's load.
    """
    maker, scale = made.maker, made.scale
    bundles = [maker.make(name, seed, scale.bottleneck).bundle() for seed, name in enumerate(made.names)]
    bank = Bank(layout_of(bundles[0].record), scale.bottleneck, len(bundles))
    slots = [bank.write(adapter_weights(bundle)) for bundle in bundles]
    graph = StoreLayout(maker.root).backbone(maker.backbone) / layout_of(bundles[0].record).file
    runner = SharedRunner(open_runner(graph, spinning=False), bank)
    pixels = np.stack([maker.preprocess.read(content) for content in maker.images])
    images = np.resize(maker.preprocess.normalise(pixels), (scale.images, *pixels.transpose(0, 3, 1, 2).shape[1:]))
    of_images = np.resize(slots, scale.images).astype(np.int64)
    batches: list[int] = []
    shares: list[float] = []
    faults = 0

    def http() -> float:
        nonlocal faults
        before = len(answered(made.server))
        rate, bad = made.leg(made.names, scale.images)
        faults += bad
        lines = answered(made.server)[before:]
        batches[:] = batch_sizes(lines)
        shares.append(rate * graph_seconds(lines) / len(lines))
        return rate

    def bare() -> float:
        start = time.monotonic()
        for size in batches:
            runner.run(images[:size], of_images[:size])
        return sum(batches) / (time.monotonic() - start)

    http()
    for size in set(batches):
        runner.run(images[:size], of_images[:size])
    found = compare({"http images/s": http, "bare images/s": bare}, scale.rounds)
    found |= {"share of the service's time in the graph": float(np.median(shares))}
    return found | {"in flight": scale.images, "wrong": faults, "batch": float(np.mean(batches))}


def answered(server: Server) -> list[dict[str, Any]]:
    """The log lines of images that were answered."""
    return [line for line in server.lines() if line.get("route") == "/classify" and line["status"] == 200]


def graph_seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Total seconds of all batches, for requests with one image each."""
    return float(sum(line["run_ms"] / line["batch"] for line in lines)) / 1000


def batch_sizes(lines: Sequence[Mapping[str, Any]]) -> list[int]:
    """The sizes of all batches, from the log lines of requests with one image each."""
    counts = Counter(int(line["batch"]) for line in lines)
    return [size for size, count in counts.items() for _ in range(max(1, round(count / size)))]


def mixed(made: Bench) -> Figures:
    """Throughput of all tasks mixed against that of a single task."""
    faults = 0

    def of(names: Sequence[str]) -> float:
        nonlocal faults
        rate, bad = made.leg(names, made.scale.images)
        faults += bad
        return rate

    sides = {"mixed images/s": lambda: of(made.names), "one task images/s": lambda: of(made.names[:1])}
    return compare(sides, made.scale.rounds) | {"tasks": len(made.names), "wrong": faults}


def alternating(made: Bench) -> Figures:
    """Median latency when every request changes the task, against requests for one task; one request in flight."""

    def of(names: Sequence[str]) -> float:
        asks = made.mix(max(10, made.scale.leg // 4), names)
        replies = asyncio.run(closed(made.server.address, asks, in_flight=1))
        return 1000 * float(np.median([reply.seconds for reply in replies]))

    sides = {"alternating p50 ms": lambda: of(made.names[:2]), "same task p50 ms": lambda: of(made.names[:1])}
    return compare(sides, 2 * made.scale.rounds)


def loaded(made: Bench, share: float = 0.7) -> Figures:
    """Latency percentiles at `share` of the service's throughput, with independent arrivals and at equal distances."""
    rate = share * made.leg(made.names, made.scale.images)[0]
    found: Figures = {"requests/s": rate, "requests": made.scale.arrivals}
    for name, arrivals in (("Poisson", poisson), ("steady", even)):
        asks = made.mix(made.scale.arrivals, made.names)
        replies = asyncio.run(arriving(made.server.address, asks, arrivals(len(asks), rate)))
        p50, p99 = (1000 * float(np.percentile([reply.seconds for reply in replies], p)) for p in (50, 99))
        found |= {f"{name} p50 ms": p50, f"{name} p99 ms": p99, f"{name} p99/p50": p99 / p50}
        found[f"{name} wrong"] = wrong(replies, made.shift, CLASSES)
    return found


def profile(made: Bench) -> Figures:
    """Images per second and what limits them: CPU time per image, and medians from the log lines."""
    (worker,) = made.server.workers()
    before, client, start = cpu_seconds(worker.pid), time.process_time(), time.monotonic()
    rate, bad = made.leg(made.names, made.scale.images)
    seconds, count = time.monotonic() - start, made.scale.leg
    loop, others = (after - then for after, then in zip(cpu_seconds(worker.pid), before, strict=True))
    lines = answered(made.server)[-count:]
    found: Figures = {
        "images/s": rate,
        "wrong": bad,
        "in flight": made.scale.images,
        "batch": float(np.mean(batch_sizes(lines))),
        "busy cores": (loop + others) / seconds,
        EVENT_LOOP: 1000 * loop / count,
        "CPU ms an image, other threads (decoding, batches, graph)": 1000 * others / count,
        "CPU ms an image, this client": 1000 * (time.process_time() - client) / count,
        "graph ms an image": 1000 * graph_seconds(lines) / count,
    }
    for part in ("load", "decode", "queue", "run"):
        found[f"median ms, {part}"] = float(np.median([line[f"{part}_ms"] for line in lines]))
    return found


def cpu_seconds(pid: int) -> tuple[float, float]:
    """(CPU seconds of a process's main thread, CPU seconds of all its other threads)."""
    times = {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}
    return times[pid], sum(times.values()) - times[pid]
