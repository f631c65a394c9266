"""The BentoML service: `bentoml serve` answers every task of `MOSA_ARTIFACTS` over HTTP.

One FastAPI app is mounted at `/`, and there is no `@bentoml.api`: in a typed API a URL in place of a file would be
fetched by the server, a broken image would be a 500, and a task named `429` would arrive as a number. BentoML's own
metrics and access log are off: they would make a series and a line of every path that a stranger invents.
"""

import gc
import os
import sys
from typing import NoReturn

import bentoml

from mosa_deploy.errors import USAGE_EXIT, MosaError
from serving import log, server
from serving.app import attach, create_app
from serving.backend import Backend
from serving.leader import WorkerRendezvous
from serving.local_backend import LocalBackend
from serving.remote_backend import InferenceServer, RemoteBackend
from serving.settings import Settings


def _settings() -> Settings:
    try:
        return Settings.from_environment()
    except MosaError as error:
        _stop(error)


def _stop(error: MosaError) -> NoReturn:
    # An exception, SystemExit too, would reach the operator as a traceback of the server's own frames.
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(USAGE_EXIT)


settings = _settings()
app = create_app(settings)


@bentoml.service(
    name="mosa-deploy",
    workers=settings.workers,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(app, path="/")
class Classifier:
    """Opens the store when a worker starts."""

    backend: Backend
    offered: InferenceServer | None = None

    def __init__(self) -> None:
        log.configure()
        log.words.info("settings: %s", settings.shown())
        try:
            self.backend = self._open()
        except MosaError as error:
            _stop(error)
        attach(app, self.backend)

    def _open(self) -> Backend:
        """The engine, or in all workers but one the way to it."""
        if settings.workers == 1:
            return LocalBackend(settings)
        place = WorkerRendezvous.of_siblings()
        self.lock = place.claim()
        if self.lock is None:
            return RemoteBackend(place.socket)
        engine = LocalBackend(settings)
        self.offered = InferenceServer(engine, place.socket)
        return engine

    @bentoml.on_startup  # type: ignore[untyped-decorator] # bentoml leaves it without types
    async def offer(self) -> None:
        """Let the other workers ask this one's engine, and know what to do at the end."""
        server.prepare(settings.drain_s)
        if self.offered:
            await self.offered.start()
        # All that was imported stays: a full collection would walk through it, a tenth of a second each time. The
        # collection makes Python forget how much that was, by which it says when the next one is due.
        gc.freeze()
        gc.collect()

    async def __is_alive__(self) -> bool:
        return (await self.backend.health()).alive

    async def __is_ready__(self) -> bool:
        return (await self.backend.health()).ready

    @bentoml.on_shutdown  # type: ignore[untyped-decorator] # bentoml leaves it without types
    async def close(self) -> None:
        """Finish what is queued."""
        if self.offered:
            await self.offered.close()
        await self.backend.close()
