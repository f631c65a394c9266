"""uvicorn's faster HTTP parser with a limit on the head of a request, which it has none of.

uvicorn's other parser, h11, refuses a head of more than 64 KiB. httptools would keep a line that never ends in memory.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 << 10
"""The most bytes of a request's first line and headers."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 400 to a head that is too large, and closes the connection."""

    received = 0
    """Bytes that arrived of a head that is not complete, after those with its beginning."""
    size = 0
    """Bytes of the headers that are complete."""
    in_head = False

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.received, self.size, self.in_head = 0, 0, True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is complete; the parser turns the ValueError for one too many into an answer."""
        self.size += len(name) + len(value)
        if self.size > HEAD_LIMIT:
            raise ValueError(f"the head has more than {HEAD_LIMIT} bytes")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self.in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what arrives, and count it if all of it belongs to one head."""
        before = self.in_head
        super().data_received(data)
        if not (before and self.in_head):
            return
        self.received += len(data)
        if self.received > HEAD_LIMIT and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")
