"""Offers a backend on a socket, to `serving.remote_backend` in other processes.

A connection that closes frees the leases that its request holds.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.client.schema import Task, Versions
from mosa_deploy.errors import MosaError
from serving import ipc, tracing
from serving.backend import Answered, Backend, Embedded, Lease, PutOptions
from serving.errors import RequestError
from serving.remote_backend import Reply


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
                return {"leases": [encode_lease(name, lease) for name, lease in leases.items()]}, []
            case "release":
                await self._release(held)
                return {}, []
            case "infer":
                with tracing.carried(head["trace"]):
                    answered = await self.backend.infer(_asked(head, blobs, held), **head["arguments"])
                return _encode_outcomes(answered, "probabilities")
            case "embed":
                with tracing.carried(head["trace"]):
                    embedded = await self.backend.embed(_asked(head, blobs, held), **head["arguments"])
                return _encode_outcomes(embedded, "features")
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


def _asked(
    head: dict[str, Any], blobs: list[bytes], held: Sequence[Lease | RequestError]
) -> list[tuple[Lease, Pixels]]:
    """The leases and the images of a call."""
    pixels = [
        np.frombuffer(blob, dtype=np.uint8).reshape(shape) for blob, shape in zip(blobs, head["shapes"], strict=True)
    ]
    return [(lease, pixels[j]) for i, j in head["asked"] if isinstance(lease := held[i], Lease)]


def _encode_outcomes(outcomes: Sequence[Answered | Embedded | RequestError], values: str) -> Reply:
    """Errors, and what says how rows came about; the rows themselves, the field `values`, become blobs."""
    messages, rows = list[dict[str, Any]](), list[bytes]()
    for each in outcomes:
        if isinstance(each, RequestError):
            messages.append({"fault": _encode_error(each)})
            rows.append(b"")
        else:
            message = dict(vars(each))
            rows.append(message.pop(values).tobytes())
            messages.append(message)
    return {"outcomes": messages}, rows


def encode_lease(name: str, lease: Lease | RequestError) -> dict[str, Any]:
    """A lease as a message."""
    if isinstance(lease, RequestError):
        return {"name": name, "fault": _encode_error(lease)}
    message = {"name": name, "task": lease.task, "digest": lease.digest, "classes": lease.classes}
    place = {"lane": lease.lane, "backbone": lease.backbone, "thresholds": lease.thresholds}
    return {**message, **place, "preprocess": lease.preprocess.model_dump()}


def _encode_error(error: RequestError) -> dict[str, Any]:
    return {"status": error.status, "reason": error.reason, "retry_after": error.retry_after}
