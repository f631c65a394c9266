"""A fake service that gives the answers a test chooses."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    """One response."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


BROKEN = None
"""Use this as a reply to close the connection without an answer."""


@dataclass(frozen=True)
class Received:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class FakeService:
    """The address of the service, and the requests that it has received so far."""

    address: str
    received: list[Received]


StartService = Callable[..., FakeService]


@contextmanager
def fake_services() -> Iterator[StartService]:
    """Yield a function that starts a local server. It gives the replies in order, and repeats the last one."""
    servers: list[ThreadingHTTPServer] = []

    def start(*replies: Reply | None) -> FakeService:
        received: list[Received] = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                received.append(Received(self.command, self.path, headers, body))
                reply = replies[min(len(received), len(replies)) - 1]
                if reply is None:
                    return
                self.send_response(reply.status)
                for name, value in {**reply.headers, "content-length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body.encode())

            do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return FakeService(f"http://127.0.0.1:{server.server_port}", received)

    try:
        yield start
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
