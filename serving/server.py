"""Changes to BentoML's server for which it has no setting: how it stops, and that it forgets answered requests."""

import os
import signal
import socket
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from bentoml._internal.server.http.traffic import TimeoutMiddleware


def prepare(drain: float) -> None:
    """Change the server of this worker. To be called at startup, once uvicorn has set its handler of SIGTERM.

    After SIGTERM no connection is accepted, and requests in flight may take `drain` seconds to end.
    """
    stop = signal.getsignal(signal.SIGTERM)
    server = getattr(stop, "__self__", None)
    if not isinstance(server, uvicorn.Server):
        return
    # BentoML's own way to bound the time is a flag of `bentoml serve`.
    server.config.timeout_graceful_shutdown = drain  # type: ignore[assignment] # it takes parts of a second too

    def refuse(number: int, frame: FrameType | None) -> None:
        for listening in server.servers:
            for each in listening.sockets:
                _shut(each.fileno())
        server.handle_exit(number, frame)

    signal.signal(signal.SIGTERM, refuse)
    remove_timer(server.config.loaded_app)


def _shut(descriptor: int) -> None:
    """Refuse connections in every process that has this socket; a worker that starts again listens again.

    BentoML's arbiter keeps the socket open: without this, a client that connects now would wait in vain.
    """
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as listening:
        listening.shutdown(socket.SHUT_RDWR)


def remove_timer(app: Any) -> None:
    """Take BentoML's timer out of the layers around our app, which has a deadline of its own.

    The timer is not cancelled when a request is answered, so it keeps the request's memory until the time is over.
    """
    while app is not None:
        layer = "middleware_stack" if hasattr(app, "middleware_stack") else "app"
        inner: Any = getattr(app, layer, None)
        if isinstance(inner, TimeoutMiddleware):
            setattr(app, layer, inner.app)
        else:
            app = inner
