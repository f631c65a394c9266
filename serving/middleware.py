"""The outermost layer of the app. It bounds bodies and times, and writes one log line and one count per request.

The whole body is read here before a route sees it, so no parser waits for a slow sender.
"""

import asyncio
import json
import logging
import random
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import metrics, tracing
from serving.errors import RequestError, busy
from serving.request_body import RequestBody
from serving.settings import Settings

log = logging.getLogger("mosa_deploy.requests")

CHANGE_SECONDS = 30.0
"""How much longer than the deadline a change of tasks may take. Classifications keep to the deadline by themselves."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class LimitsMiddleware:
    """ASGI middleware. Routes add fields to the log line through the dict `scope["state"]["log_fields"]`."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry = RequestLog(scope)
        self.in_flight += 1
        metrics.in_flight.inc()
        try:
            await self._serve(scope, receive, entry.watch(send), entry)
        finally:
            self.in_flight -= 1
            metrics.in_flight.dec()
            entry.write()

    async def _serve(self, scope: Scope, receive: Receive, send: Send, entry: "RequestLog") -> None:
        reader = RequestBody(scope, receive, self.settings)
        try:
            if self.in_flight > self.settings.requests:
                raise busy(f"{self.settings.requests} requests are in work")
            body = await reader.read()
        except RequestError as error:
            response = error_response(error, {"connection": "close"})
            # Only what is too large is worth reading on: it would be too large again.
            await response(scope, receive, _after(reader, send) if error.status == 413 else send)
            return
        if body is None:
            return
        seconds = self.settings.deadline_s + CHANGE_SECONDS
        try:
            async with asyncio.timeout(seconds):
                await self.app(scope, _replay(body, receive), send)
        except TimeoutError:
            # A response that has begun, but whose receiver does not read, is dropped.
            if not entry.status:
                reason = f"no answer within {seconds:g} s; a change that has begun goes on: see GET /v1/tasks"
                await error_response(RequestError(504, reason))(scope, receive, send)


class RequestLog:
    """The log line and the counts of one request."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.start, self.status = scope, time.monotonic(), 0
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        # It need not be secret, and the kernel's random bytes took a twentieth of the event loop's time.
        self.id = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        self.span = tracing.spans.begin(scope) if tracing.spans and scope["path"] != metrics.PATH else None
        self.fields: dict[str, Any] = {}
        scope.setdefault("state", {})["log_fields"] = self.fields

    def watch(self, send: Send) -> Send:
        """Wrap `send` to see the response's status and to add the request's id to its headers."""

        async def listen(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
            await send(message)

        return listen

    def write(self) -> None:
        """Count and log. A status of 0 means that the sender disconnected."""
        seconds = time.monotonic() - self.start
        # Before a route is found there is none, or that of the server around the app, whose path is empty.
        found = getattr(self.scope.get("route"), "path", "")
        route = found or "none"
        method = self.scope["method"] if self.scope["method"] in {"GET", "POST", "PUT", "DELETE"} else "other"
        metrics.requests.labels(route, method, str(self.status)).inc()
        metrics.latency.labels(route).observe(seconds)
        line = {"id": self.id, "method": method, "route": route, "status": self.status}
        if self.span:
            line["trace_id"] = self.span.trace_id
            self.span.end(found, self.status)
        text = json.dumps({**line, **self.fields, "ms": round(1000 * seconds, 2)})
        log.info(text, extra={"task": _names(self.fields.get("task", ()))})


def _after(reader: RequestBody, send: Send) -> Send:
    """Send an answer at once, but end it only after the body, because the server then closes the connection."""

    async def hold(message: Message) -> None:
        last = message["type"] == "http.response.body" and not message.get("more_body")
        await send({**message, "more_body": True} if last else message)
        if last:
            await reader.drain()
            await send({"type": "http.response.body", "body": b""})

    return hold


def error_response(error: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response that tells an error."""
    extra = dict(headers or {})
    if error.retry_after is not None:
        extra["retry-after"] = str(error.retry_after)
    if error.status == 401:
        extra["www-authenticate"] = "Bearer"
    return JSONResponse({"detail": error.reason}, error.status, extra)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Receive the body as one message, then what the server receives: that the sender disconnects."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _names(task: str | Sequence[str]) -> str:
    """One task or several, as the log shows them."""
    return task if isinstance(task, str) else ",".join(task)
