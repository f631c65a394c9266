"""What `benchmarks.peers` measures of one server: start, answers under load, memory, and a task that is added."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, takewhile
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.load import throughput, wrong
from benchmarks.peers_processes import Peer, Running, asks_of, started, too_many
from benchmarks.peers_tasks import Exported
from mosa_deploy.bundles.store_layout import FOLDED, StoreLayout
from mosa_deploy.errors import MosaError
from tests.support.load import Ask, Reply, closed, connect, send
from tests.support.tasks import CLASSES

START_SECONDS = 300
ADDED = "added"
"""The task that a running server is given."""


class PeerError(MosaError):
    """A server that does not start, or does not answer."""


@dataclass(frozen=True)
class Load:
    """The answers to a closed-loop load."""

    rate: float
    """Images per second."""
    p50: float
    """Milliseconds."""
    p99: float
    answers: int
    wrong: int


@dataclass(frozen=True)
class Measured:
    """One server with one number of tasks. Without loads it was not measured, and `note` says why."""

    peer: str
    precision: str
    tasks: int
    note: str = ""
    start_s: float = 0.0
    """From its start until every task has answered once."""
    memory_mb: float = 0.0
    """After the loads."""
    add_ms: float = 0.0
    """From the upload of a new task, or its files in the folder, until it has answered."""
    loads: dict[int, Load] = field(default_factory=dict)
    """By requests in flight."""

    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """What is asked of every server alike."""

    in_flight: tuple[int, ...]
    seconds: float
    allowed: float
    """Bytes of memory that the models of one server may take."""


def measure(
    name: str, peer: Peer, precision: str, tasks: int, exported: Exported, folder: Path, setting: Setting
) -> Measured:
    """Start a server with so many tasks, measure it, and end it."""
    if missing := peer.missing():
        return Measured(name, precision, tasks, f"not installed: {', '.join(missing)}")
    graph = StoreLayout(exported.root).task("task-0") / FOLDED
    if many := too_many(peer, graph, tasks, setting.allowed):
        return Measured(name, precision, tasks, many)
    names = exported.view(folder / "store", tasks)
    begun = time.monotonic()
    with started(peer, folder / "store", folder, precision, exported.weights) as server:
        try:
            shift = exported.shift(names)
            until_answered(server, [peer.ask(name, 0, exported.images[0]) for name in names])
            start = time.monotonic() - begun
            asks = asks_of(peer, names, exported.images)
            # Graphs and allocators settle in the first runs.
            load(server, asks, min(16, max(setting.in_flight)), setting.seconds / 4, shift)
            loads = {count: load(server, asks, count, setting.seconds, shift) for count in setting.in_flight}
            memory = server.memory()
            added = time_to_add(server, peer, exported)
        except (PeerError, aiohttp.ClientError, TimeoutError, OSError) as fault:
            return Measured(name, precision, tasks, f"failed: {str(fault) or type(fault).__name__}")
    return Measured(name, precision, tasks, "", start, memory / 1e6, 1000 * added, loads)


def load(server: Running, asks: Sequence[Ask], in_flight: int, seconds: float, shift: dict[str, int]) -> Load:
    """Keep so many requests in flight for a while."""
    end = time.monotonic() + seconds
    replies = asyncio.run(closed(server.address, takewhile(lambda _: time.monotonic() < end, cycle(asks)), in_flight))
    p50, p99 = (1000 * float(np.percentile([reply.seconds for reply in replies], p)) for p in (50, 99))
    return Load(throughput(replies), p50, p99, len(replies), wrong(replies, shift, CLASSES))


def until_answered(server: Running, asks: Sequence[Ask]) -> None:
    """Send each request, one after the other, until it is answered.

    Raises:
        PeerError: the server ends, or takes too long.
    """
    end = time.monotonic() + START_SECONDS
    for ask in asks:
        while (answer := asyncio.run(answered(server.address, ask))) is None or answer.status != 200:
            if server.process.poll() is not None or time.monotonic() > end:
                said = f"status {answer.status}" if answer else "no answer"
                raise PeerError(f"{said} for {ask.task}; its log ends with: {server.end_of_log()}")
            time.sleep(0.05)


async def answered(address: str, ask: Ask) -> Reply | None:
    """The answer to one request; None if nobody listens yet, or what answers is not JSON."""
    async with connect(address) as session:
        try:
            return await send(session, ask)
        except (aiohttp.ClientError, ValueError):
            return None


def time_to_add(server: Running, peer: Peer, exported: Exported) -> float:
    """Seconds until a new task has answered."""
    begun = time.monotonic()
    peer.add(server, exported, ADDED)
    until_answered(server, [peer.ask(ADDED, 0, exported.images[0])])
    return time.monotonic() - begun
