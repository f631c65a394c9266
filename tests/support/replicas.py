"""A load on several services of one store, while tasks change: every answer is judged by the versions of its time."""

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx

from mosa_deploy.bundles.archive import Archive
from tests.support.app import ADMIN
from tests.support.load import Reply, classify, connect, send
from tests.support.service import Server
from tests.support.tasks import CLASSES

FOLLOW_SECONDS = 5.0
"""Within what time all services serve what one of them was told."""

PAUSE = 0.01
"""Seconds between two requests of the load to one service."""

NOBODY = -1
"""In the place of a service: the version was there before the services."""


@dataclass(frozen=True)
class Change:
    """A version of a task that was asked for at `start`, of one service, which served it at `end`."""

    task: str
    digest: str
    service: int = NOBODY
    start: float = -math.inf
    end: float = -math.inf


@dataclass
class History:
    """The changes of each task in their order, and the answers of each version."""

    changes: dict[str, list[Change]] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    """Digest -> by how many places it turns the classes: image i has class i + turn."""

    def knows(self, archive: Archive, turn: int) -> str:
        """Note what a version answers; returns its digest."""
        digest = archive.bundle().digest
        self.turns[digest] = turn
        return digest

    def add(self, change: Change) -> None:
        """Note a change that has been carried out."""
        self.changes.setdefault(change.task, []).append(change)

    def fault(self, service: int, reply: Reply) -> str | None:
        """What is wrong with an answer; None if nothing is."""
        task, fields = reply.ask.task, reply.fields
        if reply.status != 200:
            return f"{task}: {reply.status} {fields}"
        digest, (first, *_) = fields["bundle"], fields["predictions"]
        if first["label"] != f"class-{(reply.ask.image + self.turns[digest]) % CLASSES}":
            return f"{task}: {first['label']} by {digest[:12]}, of image {reply.ask.image}"
        if not any(digest == each.digest and self._may_answer(i, each, service, reply) for i, each in self._of(task)):
            return f"{task}: version {digest[:12]} by service {service} at {reply.start:.2f}, see {self.changes[task]}"
        return None

    def _of(self, task: str) -> Sequence[tuple[int, Change]]:
        return list(enumerate(self.changes[task]))

    def _may_answer(self, place: int, change: Change, service: int, reply: Reply) -> bool:
        """Whether an answer falls into the time of a version: from its request to a while after the next one."""
        later = self.changes[change.task][place + 1 : place + 2]
        return reply.end >= change.start and all(
            reply.start <= each.end + (0 if each.service == service else FOLLOW_SECONDS) for each in later
        )

    def lag(self, change: Change, replies: Sequence[tuple[int, Reply]]) -> float:
        """Seconds from the end of a change to the last request that was answered by the version before."""
        own = self.changes[change.task]
        until = next((each.start for each in own[own.index(change) + 1 :]), math.inf)
        stale = [
            reply.start - change.end
            for _, reply in replies
            if reply.ask.task == change.task
            and change.end < reply.start < until
            and reply.fields.get("bundle") != change.digest
        ]
        return max(stale, default=0.0)


class Load:
    """Asks every service for all tasks in turn, in a thread, from `with` to its end."""

    def __init__(self, servers: Sequence[Server], tasks: Sequence[str], images: Sequence[bytes]) -> None:
        self.asks = [classify(task, i, image) for i, image in enumerate(images[:4]) for task in tasks]
        self.servers, self.replies = servers, list[tuple[int, Reply]]()
        """The number of the service, and what it answered."""
        self._ended = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: object, trace: TracebackType | None) -> None:
        """Stop; raises what a service did instead of answering."""
        self._ended.set()
        self._thread.join()
        if self._fault and kind is None:
            raise self._fault

    def _run(self) -> None:
        async def ask_all() -> None:
            await asyncio.gather(*map(self._ask, range(len(self.servers))))

        try:
            asyncio.run(ask_all())
        except BaseException as fault:  # it is raised where the load ends
            self._fault = fault

    async def _ask(self, service: int) -> None:
        async with connect(self.servers[service].address) as session:
            while not self._ended.is_set():
                for ask in self.asks:
                    self.replies.append((service, await send(session, ask)))
                    await asyncio.sleep(PAUSE)

    def faults(self, history: History) -> list[str]:
        """What is wrong with the answers."""
        return [fault for service, reply in self.replies if (fault := history.fault(service, reply))]


def ask_change(server: Server, method: str, path: str, content: bytes | None = None) -> httpx.Response:
    """Send a change of a task, below `/v1/tasks`."""
    return httpx.request(method, f"{server.address}/v1/tasks/{path}", content=content, headers=ADMIN, timeout=90)


def wait_served(servers: Sequence[Server], task: str, seconds: float = FOLLOW_SECONDS, **expected: object) -> None:
    """Wait until all services say this of a task.

    Raises:
        AssertionError: one of them does not in time.
    """
    end = time.monotonic() + seconds
    for server in servers:
        while True:
            found = httpx.get(f"{server.address}/v1/tasks/{task}", timeout=30).json()
            if all(found.get(name) == value for name, value in expected.items()):
                break
            assert time.monotonic() < end, (server.address, task, expected, found)
            time.sleep(0.1)


def wait_logged(server: Server, text: str, seconds: float) -> None:
    """Wait until a service's log has this text.

    Raises:
        AssertionError: it does not in time.
    """
    end = time.monotonic() + seconds
    while text not in (log := server.log.read_text()):
        assert time.monotonic() < end, (text, log)
        time.sleep(0.1)
