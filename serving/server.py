"""Changes to BentoML's server for which it has no setting.

They are: how it stops, that it forgets answered requests, that what only our app answers goes straight to it, and that
a start that cannot succeed ends it.
"""

import atexit
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, cast

import uvicorn
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from bentoml._internal.utils.circus import Arbiter
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from mosa_deploy.errors import USAGE_EXIT
from serving.http_protocol import BoundedHttpProtocol
from serving.ports import port_error

SUPERVISOR = "MOSADEPLOY_SUPERVISOR"
"""The variable that tells a worker which process started it, and waits for its SIGUSR1."""


def stop(error: Exception) -> NoReturn:
    """End this process with one line and the exit code of a user's mistake, and the server if this is a worker of it.

    BentoML would start the worker again every ten seconds, to end in the same way.
    """
    # Any exception, even SystemExit, would reach the operator as a traceback of the server's frames.
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"error: {text}", file=sys.stderr, flush=True)
    if os.environ.get(SUPERVISOR) == str(os.getppid()):
        os.kill(os.getppid(), signal.SIGUSR1)
    os._exit(USAGE_EXIT)


def supervise() -> None:
    """Change the process that starts the workers. To be called before it opens its socket and starts the first one.

    It ends when a worker calls `stop`, and a port that cannot be had is one line.
    """
    os.environ[SUPERVISOR] = str(os.getpid())

    def give_up(number: int, frame: FrameType | None) -> None:
        atexit.register(os._exit, USAGE_EXIT)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR1, give_up)
    initialize = Arbiter.initialize

    def initialized(arbiter: Arbiter) -> None:
        # circus says in a line of its own that a socket cannot be bound.
        logging.disable(logging.CRITICAL)
        try:
            initialize(arbiter)
        except OSError as error:
            place = ", ".join(f"{each.host}:{each.port}" for each in arbiter.sockets.values())
            stop(port_error(place, error))
        finally:
            logging.disable(logging.NOTSET)

    Arbiter.initialize = initialized


def prepare(drain: float, app: ASGIApp, paths: Sequence[str]) -> None:
    """Change the server of this worker. To be called at startup, once uvicorn has set its handler of SIGTERM.

    After SIGTERM no connection is accepted, and requests in flight may take `drain` seconds to end. Requests to `paths`
    go straight to `app`.
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
    server.config.http_protocol_class = BoundedHttpProtocol
    remove_timer(server.config.loaded_app)
    outermost = server.config.loaded_app
    if isinstance(outermost, ProxyHeadersMiddleware) and not is_traced():
        # uvicorn and Starlette have types of their own for an app.
        outermost.app = cast(Any, DirectRoutes(app, frozenset(paths), cast(ASGIApp, outermost.app)))


@dataclass(frozen=True)
class DirectRoutes:
    """An ASGI app that gives requests to some paths to one app, and all others to another.

    BentoML's layers record a trace of every message of a request, which takes longer than our own layers and routes.
    """

    app: ASGIApp
    paths: frozenset[str]
    others: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        direct = scope["type"] == "http" and scope["path"] in self.paths
        await (self.app if direct else self.others)(scope, receive, send)


def is_traced() -> bool:
    """Whether BentoML was told to send its traces somewhere; without that it records them in vain."""
    return BentoMLContainer.tracing.exporter_type.get() is not None


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
