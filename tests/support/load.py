"""Requests whose answers can be checked, and a closed-loop load of them."""

import asyncio
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx


@dataclass(frozen=True)
class Ask:
    """A request, ready to be sent, with its task and image."""

    body: bytes
    content_type: str
    task: str
    image: int
    """The number of the probe image."""
    status: int = 200
    """The expected HTTP status."""
    path: str = "/classify"
    headers: tuple[tuple[str, str], ...] = ()
    """Besides the content type."""


@dataclass(frozen=True)
class Reply:
    """The response to a request. Times are those of `time.monotonic`."""

    ask: Ask
    start: float
    """When the request was sent, or should have been sent."""
    end: float
    status: int
    fields: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Seconds from `start` to the last byte of the response."""
        return self.end - self.start


def classify(task: str, image: int, content: bytes, top_k: int = 1, status: int = 200) -> Ask:
    """A request to classify one image with one task."""
    files = {"image": ("image.png", content)}
    request = httpx.Request("POST", "http://service/classify", files=files, data={"task": task, "top_k": str(top_k)})
    return Ask(request.read(), request.headers["content-type"], task, image, status)


async def send(session: aiohttp.ClientSession, ask: Ask, due: float | None = None) -> Reply:
    """Send one request and read its answer."""
    start = time.monotonic() if due is None else due
    headers = {**dict(ask.headers), "content-type": ask.content_type}
    async with session.post(ask.path, data=ask.body, headers=headers) as response:
        content = await response.read()
    return Reply(ask, start, time.monotonic(), response.status, json.loads(content))


def connect(address: str) -> aiohttp.ClientSession:
    """An HTTP session without a limit on connections, so that every request in flight has its own."""
    timeout = aiohttp.ClientTimeout(total=120)
    return aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def closed(address: str, asks: Iterable[Ask], in_flight: int) -> list[Reply]:
    """Send all requests, and keep `in_flight` of them in flight until the end."""
    waiting, replies = iter(asks), list[Reply]()

    async def sender(session: aiohttp.ClientSession) -> None:
        for ask in waiting:
            replies.append(await send(session, ask))

    async with connect(address) as session:
        await asyncio.gather(*(sender(session) for _ in range(in_flight)))
    return replies
