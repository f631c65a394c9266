"""Load on the service whose every answer can be checked.

aiohttp, which comes with BentoML, sends; load generators such as locust know closed loops alone, in which a slow answer
holds back the requests that would have shown it. Bodies are made once, before the clock runs.
"""

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ask:
    """One request, ready to be sent, and what it is about."""

    body: bytes
    content_type: str
    task: str
    image: int
    """The number of the probe image."""
    status: int = 200
    """That it should be answered with."""


@dataclass(frozen=True)
class Reply:
    """What came of it; times by `time.monotonic`."""

    ask: Ask
    start: float
    """When it was sent, or due to be sent."""
    end: float
    status: int
    fields: dict[str, Any]

    @property
    def seconds(self) -> float:
        """From its start to the last byte of the answer."""
        return self.end - self.start


def classify(task: str, image: int, content: bytes, top_k: int = 1, status: int = 200) -> Ask:
    """A request of one image for one task."""
    files = {"image": ("image.png", content)}
    request = httpx.Request("POST", "http://service/classify", files=files, data={"task": task, "top_k": str(top_k)})
    return Ask(request.read(), request.headers["content-type"], task, image, status)


async def send(session: aiohttp.ClientSession, ask: Ask, due: float | None = None) -> Reply:
    """Send one request and read its answer."""
    start = time.monotonic() if due is None else due
    headers = {"content-type": ask.content_type}
    async with session.post("/classify", data=ask.body, headers=headers) as response:
        content = await response.read()
    return Reply(ask, start, time.monotonic(), response.status, json.loads(content))


def connect(address: str) -> aiohttp.ClientSession:
    """A session with as many connections as there are requests in flight."""
    timeout = aiohttp.ClientTimeout(total=120)
    return aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def closed(address: str, asks: Iterable[Ask], in_flight: int) -> list[Reply]:
    """Keep so many requests in flight until all are answered."""
    waiting, replies = iter(asks), list[Reply]()

    async def sender(session: aiohttp.ClientSession) -> None:
        for ask in waiting:
            replies.append(await send(session, ask))

    async with connect(address) as session:
        await asyncio.gather(*(sender(session) for _ in range(in_flight)))
    return replies


async def arriving(address: str, asks: Sequence[Ask], arrivals: NDArray[np.float64]) -> list[Reply]:
    """Send each request when it is due, seconds from now, whether earlier ones are answered or not."""
    async with connect(address) as session:
        start = time.monotonic()

        async def one(ask: Ask, after: float) -> Reply:
            await asyncio.sleep(max(0.0, start + after - time.monotonic()))
            return await send(session, ask, start + after)

        return list(await asyncio.gather(*(one(ask, after) for ask, after in zip(asks, arrivals, strict=True))))


def poisson(count: int, rate: float, seed: int = 0) -> NDArray[np.float64]:
    """When requests come that know nothing of each other, so many a second."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def even(count: int, rate: float) -> NDArray[np.float64]:
    """When requests come at a steady beat."""
    return np.arange(count) / rate


def throughput(replies: Sequence[Reply]) -> float:
    """Answers a second, from the first request to the last answer."""
    return len(replies) / (max(reply.end for reply in replies) - min(reply.start for reply in replies))


def wrong(replies: Sequence[Reply], shift: dict[str, int], classes: int) -> int:
    """How many answers are not what the task says of the image: class (image + shift of the task) mod classes."""
    expected = (f"class-{(reply.ask.image + shift[reply.ask.task]) % classes}" for reply in replies)
    return sum(
        reply.status != 200 or reply.fields["predictions"][0]["label"] != label
        for reply, label in zip(replies, expected, strict=True)
    )
