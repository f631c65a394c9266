"""What BentoML has no setting for: how its server ends, and that it keeps no request that was answered."""

import os
import signal
import socket
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from bentoml._internal.server.http.traffic import TimeoutMiddleware


def prepare(drain: float) -> None:
    """Called in a worker's startup, when uvicorn has set its handler of SIGTERM.

    After SIGTERM nothing more is accepted, and what has begun may take `drain` seconds to end.
    """
    stop = signal.getsignal(signal.SIGTERM)
    server = getattr(stop, "__self__", None)
    if not isinstance(server, uvicorn.Server):
        return
    # BentoML's own way to bound the time is a flag of `bentoml serve`.
    server.config.timeout_graceful_shutdown = drain  # type: ignore[assignment] # parts of a second will do too

    def refuse(number: int, frame: FrameType | None) -> None:
        for listening in server.servers:
            for each in listening.sockets:
                _shut(each.fileno())
        server.handle_exit(number, frame)

    signal.signal(signal.SIGTERM, refuse)
    remove_timer(server.config.loaded_app)


def _shut(descriptor: int) -> None:
    """Refuse connections in every process that has this socket; a worker that starts again listens again.

    BentoML's arbiter keeps it open, so that whoever connects meanwhile would wait for an answer that never comes.
    """
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as listening:
        listening.shutdown(socket.SHUT_RDWR)


def remove_timer(app: Any) -> None:
    """Take BentoML's timer of each request out of the layers around ours, which bounds the time itself.

    It is not cancelled by the answer, and so keeps the request's context, trace and all, until the time is over.
    """
    while app is not None:
        layer = "middleware_stack" if hasattr(app, "middleware_stack") else "app"
        inner: Any = getattr(app, layer, None)
        if isinstance(inner, TimeoutMiddleware):
            setattr(app, layer, inner.app)
        else:
            app = inner
