"""What SIGTERM does: nothing more is accepted, and what has begun may take MOSA_DRAIN_S to end.

BentoML says neither to uvicorn: its own way to bound the time is a flag of `bentoml serve`, and its arbiter keeps the
listening socket open, so that whoever connects meanwhile would wait for an answer that never comes.
"""

import os
import signal
import socket
from contextlib import suppress
from types import FrameType

import uvicorn


def prepare(seconds: float) -> None:
    """Called in a worker's startup, when uvicorn has set its handler of SIGTERM."""
    stop = signal.getsignal(signal.SIGTERM)
    server = getattr(stop, "__self__", None)
    if not isinstance(server, uvicorn.Server):
        return
    server.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment] # parts of a second will do too

    def refuse(number: int, frame: FrameType | None) -> None:
        for listening in server.servers:
            for each in listening.sockets:
                _shut(each.fileno())
        server.handle_exit(number, frame)

    signal.signal(signal.SIGTERM, refuse)


def _shut(descriptor: int) -> None:
    """Refuse connections in every process that has this socket; a worker that starts again listens again."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as listening:
        listening.shutdown(socket.SHUT_RDWR)
