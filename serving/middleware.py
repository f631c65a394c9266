"""The outermost layer of the app: bounds on what is read and on the time, and one log line and one count a request.

A body is read here, whole and bounded, before a route sees it: a parser never waits for a slow sender, and what is too
large is refused when the limit is passed, whatever its head said.
"""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import metrics
from serving.errors import RequestError, busy
from serving.settings import Settings

log = logging.getLogger("mosa_deploy.requests")

CHANGE_SECONDS = 30.0
"""What a change of tasks may take beyond the deadline, by which every classification ends by itself."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class LimitsMiddleware:
    """ASGI middleware; `scope["state"]["note"]` is a dict to which routes add what the log line should say."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        note = _Note(scope)
        self.in_flight += 1
        metrics.in_flight.inc()
        try:
            await self._serve(scope, receive, note.listening(send), note)
        finally:
            self.in_flight -= 1
            metrics.in_flight.dec()
            note.write()

    async def _serve(self, scope: Scope, receive: Receive, send: Send, note: "_Note") -> None:
        try:
            if self.in_flight > self.settings.requests:
                raise busy(f"{self.settings.requests} requests are in work")
            body = await self._body(scope, receive)
        except RequestError as refusal:
            # Whatever of the body has not come yet is not worth waiting for.
            await answer(refusal, {"connection": "close"})(scope, receive, send)
            return
        if body is None:
            return
        seconds = self.settings.deadline_s + CHANGE_SECONDS
        try:
            async with asyncio.timeout(seconds):
                await self.app(scope, _replay(body, receive), send)
        except TimeoutError:
            # An answer that has begun, and whose reader does not read, is given up.
            if not note.status:
                reason = f"no answer within {seconds:g} s; a change that has begun goes on: see GET /v1/tasks"
                await answer(RequestError(504, reason))(scope, receive, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the sender left."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if "pickle" in headers.get("content-type", "").lower():
            raise RequestError(415, "pickles are not read: send multipart/form-data, or a .mosa file")
        limit = self.settings.max_upload
        stated = headers.get("content-length", "0")
        if not stated.isascii() or not stated.isdigit() or len(stated) > 18:
            raise RequestError(400, "Content-Length is not a number")
        if int(stated) > limit:
            raise too_large(limit)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.settings.body_s):
                size = 0
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise too_large(limit)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self.settings.body_s:g} s") from None


class _Note:
    """What becomes the log line of a request."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.start, self.status = scope, time.monotonic(), 0
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.fields: dict[str, Any] = {}
        scope.setdefault("state", {})["note"] = self.fields

    def listening(self, send: Send) -> Send:
        """Pass messages on, see the status, and name the request."""

        async def listen(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
            await send(message)

        return listen

    def write(self) -> None:
        """Count and log; a request without a status was left by its sender."""
        seconds = time.monotonic() - self.start
        route = getattr(self.scope.get("route"), "path", "none")
        method = self.scope["method"] if self.scope["method"] in {"GET", "POST", "PUT", "DELETE"} else "other"
        metrics.requests.labels(route, method, str(self.status)).inc()
        metrics.latency.labels(route).observe(seconds)
        line = {"id": self.id, "method": method, "route": route, "status": self.status}
        log.info(json.dumps({**line, **self.fields, "ms": round(1000 * seconds, 2)}))


def too_large(limit: int) -> RequestError:
    """More than MOSA_MAX_UPLOAD."""
    return RequestError(413, f"the body has more than {limit} bytes, which is the limit: send less at once")


def answer(refusal: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A refusal as a response."""
    extra = dict(headers or {})
    if refusal.retry_after is not None:
        extra["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        extra["www-authenticate"] = "Bearer"
    return JSONResponse({"detail": refusal.reason}, refusal.status, extra)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message; what comes after it is the sender leaving."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
