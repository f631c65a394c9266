"""A backend in another process: `RemoteBackend` asks the one that `serving.inference_server` offers on a socket.

A request that holds leases has a connection to itself. If its worker dies, the connection closes and frees them.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from mosa_deploy.client.schema import Task, Versions
from serving import ipc, tracing
from serving.backend import Answered, Embedded, Health, Lease, Outcome, PutOptions
from serving.errors import RequestError, busy

log = logging.getLogger("mosa_deploy.serving")

Reply = tuple[dict[str, Any], list[bytes]]

_NOTHING: Array = np.empty(0, dtype=np.float32)

IDLE = 64
"""Connections that are kept for the next requests."""


@dataclass(eq=False)
class Connection:
    """A connection to the inference server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, head: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Reply:
        """Send a message and read the reply.

        Raises:
            RequestError: the backend's own, or 503 if its process is gone.
        """
        try:
            await ipc.send(self.writer, head, blobs)
            reply, more = await ipc.receive(self.reader)
        except (OSError, asyncio.IncompleteReadError):
            raise busy("the inference process is starting again") from None
        if "fault" in reply:
            raise _decode_error(reply["fault"])
        return reply, more


class RemoteBackend:
    """A `Backend` that asks the worker that infers."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._idle: list[Connection] = []

    async def lease(self, tasks: Sequence[str], seconds: float, plain: bool = False) -> dict[str, Lease | RequestError]:
        """See `Backend`. The request keeps its connection until it ends."""
        connection = await self._take()
        try:
            head = {"call": "lease", "tasks": list(tasks), "seconds": seconds, "plain": plain}
            reply, _ = await connection.ask(head)
        except BaseException as fault:
            self._give(connection, whole=isinstance(fault, RequestError))
            raise
        leases = {each["name"]: decode_lease(each, (connection, i)) for i, each in enumerate(reply["leases"])}
        if not any(isinstance(lease, Lease) for lease in leases.values()):
            self._give(connection)
        return leases

    async def release(self, leases: Sequence[Lease]) -> None:
        """See `Backend`."""
        connection, _ = leases[0].handle
        # If this fails, the connection is closed, which frees the leases too.
        whole = False
        try:
            await connection.ask({"call": "release"})
            whole = True
        except RequestError:
            log.info("the inference process left before a request ended")
        finally:
            self._give(connection, whole)

    async def infer(
        self, asked: Sequence[tuple[Lease, Pixels]], seconds: float, unknown: bool = False
    ) -> list[Outcome]:
        """See `Backend`."""
        return [
            found if isinstance(found, RequestError) else Answered(row, **found)
            for found, row in await self._send("infer", asked, seconds=seconds, unknown=unknown)
        ]

    async def embed(
        self, asked: Sequence[tuple[Lease, Pixels]], seconds: float, plain: bool = False
    ) -> list[Embedded | RequestError]:
        """See `Backend`."""
        return [
            found if isinstance(found, RequestError) else Embedded(row, **found)
            for found, row in await self._send("embed", asked, seconds=seconds, plain=plain)
        ]

    async def _send(
        self, call: str, asked: Sequence[tuple[Lease, Pixels]], **arguments: Any
    ) -> list[tuple[dict[str, Any] | RequestError, Array]]:
        """Have images run; for each an error, or a row of numbers and how it came about.

        An image is sent once, however many tasks it has.
        """
        once = {id(pixels): np.ascontiguousarray(pixels) for _, pixels in asked}
        places = {name: i for i, name in enumerate(once)}
        connection, _ = asked[0][0].handle
        head = {
            "call": call,
            "asked": [[lease.handle[1], places[id(pixels)]] for lease, pixels in asked],
            "shapes": [pixels.shape for pixels in once.values()],
            "arguments": arguments,
            "trace": tracing.spans.carrier() if tracing.spans else None,
        }
        reply, rows = await connection.ask(head, [pixels.tobytes() for pixels in once.values()])
        return [
            (_decode_error(each["fault"]), _NOTHING)
            if "fault" in each
            else (each, np.frombuffer(row, dtype=np.float32))
            for each, row in zip(reply["outcomes"], rows, strict=True)
        ]

    async def tasks(self) -> list[Task]:
        """See `Backend`."""
        return [Task.model_validate(each) for each in (await self._ask("tasks"))["value"]]

    async def task(self, name: str) -> Task:
        """See `Backend`."""
        return Task.model_validate((await self._ask("task", name=name))["value"])

    async def put(self, name: str, content: bytes, options: PutOptions) -> Task:
        """See `Backend`."""
        reply = await self._ask("put", [content], name=name, options=asdict(options))
        return Task.model_validate(reply["value"])

    async def remove(self, name: str, force: bool) -> None:
        """See `Backend`."""
        await self._ask("remove", name=name, force=force)

    async def versions(self, name: str) -> Versions:
        """See `Backend`."""
        return Versions.model_validate((await self._ask("versions", name=name))["value"])

    async def rollback(self, name: str, digest: str | None, new_classes: bool) -> Task:
        """See `Backend`."""
        reply = await self._ask("rollback", name=name, digest=digest, new_classes=new_classes)
        return Task.model_validate(reply["value"])

    async def pin(self, name: str, pinned: bool) -> Task:
        """See `Backend`."""
        return Task.model_validate((await self._ask("pin", name=name, pinned=pinned))["value"])

    async def health(self) -> Health:
        """See `Backend`. While no worker infers, this one is alive but not ready."""
        try:
            value = (await self._ask("health"))["value"]
        except RequestError:
            return Health(alive=True, ready=False)
        return Health(**value)

    async def close(self) -> None:
        """See `Backend`."""
        for connection in self._idle:
            connection.writer.close()

    async def _ask(self, call: str, blobs: Sequence[bytes] = (), **arguments: Any) -> dict[str, Any]:
        async with self._connection() as connection:
            reply, _ = await connection.ask({"call": call, **arguments}, blobs)
        return reply

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await self._take()
        try:
            yield connection
        except BaseException as fault:
            self._give(connection, whole=isinstance(fault, RequestError))
            raise
        self._give(connection)

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof():
                return connection
            connection.writer.close()
        try:
            return Connection(*await asyncio.open_unix_connection(self.socket))
        except OSError:
            raise busy("the inference process is starting") from None

    def _give(self, connection: Connection, whole: bool = True) -> None:
        """Keep a connection for other requests, unless a reply may still arrive on it."""
        if whole and len(self._idle) < IDLE and not connection.reader.at_eof():
            self._idle.append(connection)
        else:
            connection.writer.close()


def decode_lease(message: dict[str, Any], handle: tuple[Connection, int]) -> Lease | RequestError:
    """The lease in a message."""
    if "fault" in message:
        return _decode_error(message["fault"])
    preprocess = Preprocess.model_validate(message["preprocess"])
    classes, thresholds, backbone = tuple(message["classes"]), message["thresholds"], message["backbone"]
    thresholds = None if thresholds is None else tuple(thresholds)
    return Lease(message["task"], message["digest"], classes, preprocess, message["lane"], handle, thresholds, backbone)


def _decode_error(message: dict[str, Any]) -> RequestError:
    return RequestError(**message)
