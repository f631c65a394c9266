"""Reads the body of a request, whole and within its limits, before a route sees it."""

import asyncio
from contextlib import suppress

from starlette.types import Receive, Scope

from serving.encodings import decoded, too_large
from serving.errors import RequestError
from serving.settings import Settings

LINGER_SECONDS = 5.0
"""How long the rest of a body that is too large is read, and thrown away."""


class RequestBody:
    """The body of one request. It is refused as soon as it passes the limit, whatever its header said."""

    def __init__(self, scope: Scope, receive: Receive, settings: Settings) -> None:
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.receive, self.settings = receive, settings
        self.ended = False

    async def read(self) -> bytes | None:
        """The whole body, decompressed; None if the sender disconnected.

        Raises:
            RequestError: 400, 408, 413 or 415.
        """
        if "pickle" in self.headers.get("content-type", "").lower():
            raise RequestError(415, "pickles are not read: send multipart/form-data, or a .mosa file")
        limit = self.settings.max_upload
        stated = self.headers.get("content-length", "0")
        if not stated.isascii() or not stated.isdigit() or len(stated) > 18:
            raise RequestError(400, "Content-Length is not a number")
        if int(stated) > limit:
            raise too_large(limit)
        try:
            async with asyncio.timeout(self.settings.body_s):
                body = await self._whole(limit)
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self.settings.body_s:g} s") from None
        encoding = self.headers.get("content-encoding", "")
        if body is None or not encoding:
            return body
        return await asyncio.to_thread(decoded, body, encoding, limit)

    async def _whole(self, limit: int) -> bytes | None:
        parts: list[bytes] = []
        size = 0
        while not self.ended:
            part = await self._part()
            if part is None:
                return None
            parts.append(part)
            size += len(part)
            if size > limit:
                raise too_large(limit)
        return b"".join(parts)

    async def _part(self) -> bytes | None:
        """The next part; None if the sender disconnected."""
        message = await self.receive()
        here = message["type"] == "http.request"
        self.ended = not (here and message.get("more_body"))
        return message.get("body", b"") if here else None

    async def drain(self) -> None:
        """Read what is still sent, for a while, and throw it away.

        A connection that is closed while its sender still sends is reset: the sender loses the answer, and tries again.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.ended:
                    await self._part()
