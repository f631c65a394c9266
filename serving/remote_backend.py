"""A backend in another process: `InferenceServer` offers one on a socket, and `RemoteBackend` asks it.

A request that holds leases has a connection to itself. If its worker dies, the connection closes and frees them.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.client.schema import Task, Versions
from mosa_deploy.errors import MosaError
from serving import ipc
from serving.backend import Answered, Backend, Health, Lease, Outcome, PutOptions
from serving.errors import RequestError, busy

log = logging.getLogger("mosa_deploy.serving")

Reply = tuple[dict[str, Any], list[bytes]]

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

    async def lease(self, tasks: Sequence[str], seconds: float) -> dict[str, Lease | RequestError]:
        """See `Backend`. The request keeps its connection until it ends."""
        connection = await self._take()
        try:
            reply, _ = await connection.ask({"call": "lease", "tasks": list(tasks), "seconds": seconds})
        except BaseException as fault:
            self._give(connection, whole=isinstance(fault, RequestError))
            raise
        leases = {each["task"]: decode_lease(each, (connection, i)) for i, each in enumerate(reply["leases"])}
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

    async def infer(self, asked: Sequence[tuple[Lease, Pixels]], seconds: float) -> list[Outcome]:
        """See `Backend`. An image is sent once, however many tasks it has."""
        once = {id(pixels): np.ascontiguousarray(pixels) for _, pixels in asked}
        places = {name: i for i, name in enumerate(once)}
        connection, _ = asked[0][0].handle
        head = {
            "call": "infer",
            "asked": [[lease.handle[1], places[id(pixels)]] for lease, pixels in asked],
            "shapes": [pixels.shape for pixels in once.values()],
            "seconds": seconds,
        }
        reply, rows = await connection.ask(head, [pixels.tobytes() for pixels in once.values()])
        return [
            _decode_error(each["fault"])
            if "fault" in each
            else Answered(np.frombuffer(row, dtype=np.float32), each["waited"], each["ran"], each["batch"])
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


class InferenceServer:
    """Offers a backend on a socket."""

    def __init__(self, backend: Backend, socket: Path) -> None:
        self.backend, self.socket = backend, socket
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; a socket that an earlier leader left is removed."""
        self.socket.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.socket)

    async def close(self) -> None:
        """Stop listening."""
        if self._server:
            self._server.close()
        self.socket.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: list[Lease | RequestError] = []
        try:
            while True:
                head, blobs = await ipc.receive(reader)
                try:
                    reply, rows = await self._answer(head, blobs, held)
                except MosaError as fault:
                    reply, rows = {"fault": _encode_error(RequestError.of(fault))}, []
                await ipc.send(writer, reply, rows)
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            await self._release(held)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _release(self, held: list[Lease | RequestError]) -> None:
        await self.backend.release([lease for lease in held if isinstance(lease, Lease)])
        held.clear()

    async def _answer(self, head: dict[str, Any], blobs: list[bytes], held: list[Lease | RequestError]) -> Reply:
        match head.pop("call"):
            case "lease":
                # A request that got no lease at all does not release, so its errors are still here.
                await self._release(held)
                leases = await self.backend.lease(**head)
                held += leases.values()
                return {"leases": [encode_lease(task, lease) for task, lease in leases.items()]}, []
            case "release":
                await self._release(held)
                return {}, []
            case "infer":
                return await self._infer(head, blobs, held)
            case "put":
                options = PutOptions(**head.pop("options"))
                return {
                    "value": (await self.backend.put(**head, content=blobs[0], options=options)).model_dump(mode="json")
                }, []
            case "remove":
                await self.backend.remove(**head)
                return {}, []
            case "tasks":
                return {"value": [each.model_dump(mode="json") for each in await self.backend.tasks()]}, []
            case "health":
                health = await self.backend.health()
                return {"value": {"alive": health.alive, "ready": health.ready}}, []
            case "task" | "versions" | "rollback" | "pin" as call:
                info: Task | Versions = await getattr(self.backend, call)(**head)
                return {"value": info.model_dump(mode="json")}, []
        raise RequestError(503, "the workers are of different versions: restart the server")

    async def _infer(self, head: dict[str, Any], blobs: list[bytes], held: list[Lease | RequestError]) -> Reply:
        pixels = [
            np.frombuffer(blob, dtype=np.uint8).reshape(shape)
            for blob, shape in zip(blobs, head["shapes"], strict=True)
        ]
        asked = [(lease, pixels[j]) for i, j in head["asked"] if isinstance(lease := held[i], Lease)]
        outcomes = await self.backend.infer(asked, head["seconds"])
        messages = [
            {"fault": _encode_error(each)}
            if isinstance(each, RequestError)
            else {"waited": each.waited, "ran": each.ran, "batch": each.batch}
            for each in outcomes
        ]
        rows = [b"" if isinstance(each, RequestError) else each.probabilities.tobytes() for each in outcomes]
        return {"outcomes": messages}, rows


def encode_lease(task: str, lease: Lease | RequestError) -> dict[str, Any]:
    """A lease as a message."""
    if isinstance(lease, RequestError):
        return {"task": task, "fault": _encode_error(lease)}
    message = {"task": task, "digest": lease.digest, "classes": lease.classes, "lane": lease.lane}
    return {**message, "preprocess": lease.preprocess.model_dump(), "thresholds": lease.thresholds}


def decode_lease(message: dict[str, Any], handle: tuple[Connection, int]) -> Lease | RequestError:
    """The lease in a message."""
    if "fault" in message:
        return _decode_error(message["fault"])
    preprocess = Preprocess.model_validate(message["preprocess"])
    classes, thresholds = tuple(message["classes"]), message["thresholds"]
    thresholds = None if thresholds is None else tuple(thresholds)
    return Lease(message["task"], message["digest"], classes, preprocess, message["lane"], handle, thresholds)


def _encode_error(error: RequestError) -> dict[str, Any]:
    return {"status": error.status, "reason": error.reason, "retry_after": error.retry_after}


def _decode_error(message: dict[str, Any]) -> RequestError:
    return RequestError(**message)
