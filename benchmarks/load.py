"""Put load on the service with requests whose answers can be checked.

The requests are sent by aiohttp, which comes with BentoML. Load generators such as locust support only closed loops, in
which a slow answer delays the very requests that would have shown it. Bodies are made before the clock starts.
"""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.support.load import Ask, Reply, connect, send


async def arriving(address: str, asks: Sequence[Ask], arrivals: NDArray[np.float64]) -> list[Reply]:
    """Send each request at its arrival time, in seconds from now, whether or not earlier ones are answered."""
    async with connect(address) as session:
        start = time.monotonic()

        async def one(ask: Ask, after: float) -> Reply:
            await asyncio.sleep(max(0.0, start + after - time.monotonic()))
            return await send(session, ask, start + after)

        return list(await asyncio.gather(*(one(ask, after) for ask, after in zip(asks, arrivals, strict=True))))


def poisson(count: int, rate: float, seed: int = 0) -> NDArray[np.float64]:
    """Arrival times (count,) in seconds of independent requests at `rate` per second."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def even(count: int, rate: float) -> NDArray[np.float64]:
    """Arrival times (count,) in seconds of requests at equal distances."""
    return np.arange(count) / rate


def throughput(replies: Sequence[Reply]) -> float:
    """Answers per second, from the first request to the last answer."""
    return len(replies) / (max(reply.end for reply in replies) - min(reply.start for reply in replies))


def wrong(replies: Sequence[Reply], shift: dict[str, int], classes: int) -> int:
    """The number of wrong answers. The right class is (image + shift of the task) mod classes."""
    expected = (f"class-{(reply.ask.image + shift[reply.ask.task]) % classes}" for reply in replies)
    return sum(
        reply.status != 200 or reply.fields["predictions"][0]["label"] != label
        for reply, label in zip(replies, expected, strict=True)
    )
