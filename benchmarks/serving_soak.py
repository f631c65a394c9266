"""Parts of `benchmarks.serving` that check every answer while tasks change, and memory over a long time."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import aiohttp
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.load import arriving, even, throughput, wrong
from benchmarks.serving_auto import carrying, served_by
from benchmarks.serving_speed import Figures
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.runtimes.names import CANARY_TOLERANCE
from tests.support.load import Ask, Reply, classify, closed, connect, send
from tests.support.quantised import write_int8, write_validation
from tests.support.service import KEY, Server, serve
from tests.support.tasks import CLASSES, TaskMaker

TOLERANCE = {"fp32": 1e-4, "auto": CANARY_TOLERANCE["int8"]}
"""By MOSA_PRECISION: the most by which a probability may differ from that of the task's folded graph, run alone."""

VERSIONS = 3
UPLOAD = 64 << 10
"""The limit on the size of a body, above the size of a bundle here."""

GONE = "gone"

WARM_UP_SECONDS = 60.0
BURST = 128
"""Requests in flight during the warm-up, before memory is first read."""


@dataclass
class History:
    """The versions that a task had over time; `GONE` means that it was removed."""

    changes: list[tuple[float, float, str]]
    """(begin, end, new digest) of each change."""

    def possible(self, start: float, end: float) -> set[str]:
        """The versions that may answer a request: each from the begin of its change to the end of the next one."""
        spans = pairwise([*self.changes, (math.inf, math.inf, "")])
        return {digest for (begin, _, digest), (_, last, _) in spans if begin <= end and start <= last}


@dataclass
class Known:
    """The expected answers of every version of every task to each probe image."""

    versions: dict[str, list[Archive]]
    answers: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Digest -> probabilities (n, K)."""

    @classmethod
    def make(cls, maker: TaskMaker, tasks: int, bottleneck: int = 4) -> "Known":
        """Make tasks and versions whose top classes differ for each image."""
        known = cls({})
        for t in range(tasks):
            name = f"task-{t}"
            known.versions[name] = [maker.make(name, t + 11 * v, bottleneck) for v in range(VERSIONS)]
            for archive in known.versions[name]:
                known.answers[archive.bundle().digest] = maker.offline(archive)
        return known

    def error(self, reply: Reply) -> float:
        """The largest difference of a probability from the expected answer of the version that the reply names."""
        expected = self.answers[reply.fields["bundle"]][reply.ask.image]
        scores = {each["label"]: each["score"] for each in reply.fields["predictions"]}
        given = np.array([scores[f"class-{k}"] for k in range(len(expected))])
        if int(given.argmax()) != int(expected.argmax()):
            return math.inf
        return float(np.abs(given - expected).max())


def soak(folder: Path, requests: int, changes: int, tasks: int, in_flight: int, precision: str = "fp32") -> Figures:
    """Send requests, one in twenty of them invalid, while tasks are replaced, rolled back, removed and pinned.

    For `auto`, the shared graph is there in int8 too, and every version carries validation images.
    """
    # Later parts reuse the backbones in `store`, which have no int8 files.
    maker = TaskMaker(folder / ("quantised" if precision == "auto" else "store"))
    known = Known.make(maker, tasks)
    if precision == "auto":
        known.versions = {name: [carrying(maker, each) for each in own] for name, own in known.versions.items()}
        write_int8(maker.root, maker, known.versions["task-0"][0])
    for versions in known.versions.values():
        maker.store(versions[0])
        write_validation(maker.root, versions[0], versions[0].validation)
    limit = UPLOAD + max(len(version.pack()) for versions in known.versions.values() for version in versions)
    asks = list(requests_of(known, maker.images, requests, limit))
    with serve(maker.root, folder, admin_keys=KEY, max_upload=limit, precision=precision) as server:
        server.wait_until("ready")
        replies, histories = asyncio.run(under_changes(server, asks, known, changes, in_flight))
        served = served_by(server.address)
    counts: Counter[str] = Counter()
    largest = 0.0
    for reply in replies:
        verdict = judge(reply, known, histories, TOLERANCE[precision])
        counts[verdict] += 1
        if verdict == "right":
            largest = max(largest, known.error(reply))
    return {
        "requests": len(replies),
        "changes": sum(len(history.changes) - 1 for history in histories.values()),
        **{name: counts[name] for name in ("right", "wrong answers", "bad ones refused", "busy", "while removed")},
        "other failures": counts["other failures"],
        "largest error": largest,
        "served by": served,
    }


def requests_of(known: Known, images: Sequence[bytes], count: int, limit: int) -> Iterator[Ask]:
    """Requests in random order; every twentieth is invalid, in a different way."""
    rng = np.random.default_rng(0)
    names = list(known.versions)
    good = {(n, i): classify(n, i, content, CLASSES) for n in names for i, content in enumerate(images)}
    bad = [
        classify("no-such-task", 0, images[0], status=404),
        classify(names[0], 0, b"text", status=415),
        classify(names[0], 0, images[0][: len(images[0]) // 2], status=400),
        classify(names[0], 0, images[0] + bytes(limit), status=413),
        Ask(b"--x--\r\n", "multipart/form-data; boundary=x", names[0], 0, 422),
        Ask(b"pickle", "application/x-pickle", names[0], 0, 415),
    ]
    for n in range(count):
        yield bad[n // 20 % len(bad)] if n % 20 == 0 else good[str(rng.choice(names)), int(rng.integers(len(images)))]


async def under_changes(
    server: Server, asks: Sequence[Ask], known: Known, changes: int, in_flight: int
) -> tuple[list[Reply], dict[str, History]]:
    """Send everything while an operator changes tasks, spread over the whole time."""
    histories = {n: History([(-math.inf, -math.inf, v[0].bundle().digest)]) for n, v in known.versions.items()}
    waiting, replies = iter(asks), list[Reply]()

    async def sender(session: aiohttp.ClientSession) -> None:
        for ask in waiting:
            replies.append(await send(session, ask))

    async with connect(server.address) as session:
        operator = Operator(session, known, histories, np.random.default_rng(1))

        async def change() -> None:
            for n in range(changes):
                while len(replies) < n * len(asks) // changes:
                    await asyncio.sleep(0.01)
                await operator.step()

        await asyncio.gather(change(), *(sender(session) for _ in range(in_flight)))
    return replies, histories


@dataclass
class Operator:
    """Changes one task after the other, and keeps its history."""

    session: aiohttp.ClientSession
    known: Known
    histories: Mapping[str, History]
    rng: np.random.Generator
    before: dict[str, str] = field(default_factory=dict)
    """The version that a rollback restores."""

    async def step(self) -> None:
        """Make one change to a task: a new version, a rollback, removal and re-upload, or pin and unpin."""
        name = str(self.rng.choice(list(self.known.versions)))
        now = self.histories[name].changes[-1][2]
        kind = int(self.rng.integers(4))
        if kind == 1 and name in self.before:
            await self.change(name, self.before[name], "POST", "/rollback")
            self.before[name] = now
        elif kind == 3:
            pinned = b'{"pinned": true}' if self.rng.integers(2) else b'{"pinned": false}'
            await self.change(name, now, "POST", "/pin", pinned, "application/json")
        else:
            if kind == 2:
                # A pinned task is removed by force.
                await self.change(name, GONE, "DELETE", "?force=true")
            others = [v for v in self.known.versions[name] if v.bundle().digest != now]
            version = others[int(self.rng.integers(len(others)))]
            await self.change(name, version.bundle().digest, "PUT", "", version.pack())
            self.before[name] = now
            if kind == 2:
                del self.before[name]

    async def change(
        self, name: str, digest: str, method: str, path: str, content: bytes = b"", kind: str = "application/zip"
    ) -> None:
        """Send one change and record it. The new version counts as possible from just before the request."""
        changes = self.histories[name].changes
        begin = time.monotonic()
        changes.append((begin, math.inf, digest))
        headers = {"authorization": f"Bearer {KEY}", "content-type": kind}
        async with self.session.request(method, f"/v1/tasks/{name}{path}", data=content, headers=headers) as response:
            if response.status >= 300:
                raise RuntimeError(f"{method} {name}{path}: {response.status} {await response.text()}")
        changes[-1] = (begin, time.monotonic(), digest)


def judge(reply: Reply, known: Known, histories: Mapping[str, History], tolerance: float) -> str:
    """The category of a reply, under which it is counted."""
    history = histories.get(reply.ask.task)
    possible = history.possible(reply.start, reply.end) if history else set()
    if reply.status == 404 and GONE in possible:
        return "while removed"
    if reply.ask.status != 200:
        return "bad ones refused" if reply.status == reply.ask.status else "other failures"
    if reply.status == 200:
        right = reply.fields["bundle"] in possible and known.error(reply) <= tolerance
        return "right" if right and reply.fields["task"] == reply.ask.task else "wrong answers"
    return "busy" if reply.status == 503 else "other failures"


def endurance(folder: Path, seconds: float, share: float = 0.7) -> Figures:
    """Measure the growth of a service's memory under a steady load, at `share` of its throughput."""
    maker = TaskMaker(folder / "store")
    names = [f"task-{t}" for t in range(8)]
    for seed, name in enumerate(names):
        maker.store(maker.make(name, seed))
    asks = [classify(names[i % 8], i // 8, maker.images[i // 8]) for i in range(128)]
    shift = {name: seed for seed, name in enumerate(names)}
    part = min(10.0, seconds / 6)
    with serve(maker.root, folder) as server:
        server.wait_until("ready")
        asyncio.run(closed(server.address, asks, in_flight=16))
        rate = share * throughput(asyncio.run(closed(server.address, asks * 4, in_flight=16)))
        sent = [asks[i % len(asks)] for i in range(max(1, int(rate * part)))]
        # Memory grows with the requests in flight, and a pause of the machine causes many: reach that level first.
        asyncio.run(closed(server.address, asks * 2, BURST))
        for _ in range(round(min(WARM_UP_SECONDS, seconds / 4) / part) or 1):
            asyncio.run(arriving(server.address, sent, even(len(sent), rate)))
        points, faults, count, begin = [(0.0, server.memory())], 0, 0, time.monotonic()
        while points[-1][0] < seconds:
            replies = asyncio.run(arriving(server.address, sent, even(len(sent), rate)))
            faults, count = faults + wrong(replies, shift, CLASSES), count + len(replies)
            points.append((time.monotonic() - begin, server.memory()))
    times, held = np.array(points).T
    quarters = [float(part[-1]) / 1e6 for part in np.array_split(held, 4)]
    return {
        "minutes": times[-1] / 60,
        "requests": count,
        "requests/s": rate,
        "wrong": faults,
        "MB at the start": held[0] / 1e6,
        "MB after each quarter": ", ".join(f"{megabytes:.1f}" for megabytes in quarters),
        "MB at the end": held[-1] / 1e6,
        "largest MB": held.max() / 1e6,
        "growth %": 100 * (held[-1] / held[0] - 1),
        "trend, % of the start": 100 * float(stats.linregress(times, held).slope) * times[-1] / held[0],
    }
