"""The BentoML service: `bentoml serve` answers every task of `MOSA_ARTIFACTS` over HTTP.

One FastAPI app is mounted at `/`, and there is no `@bentoml.api`: a typed API would fetch a URL that is given instead
of a file, answer a broken image with a 500, and turn a task named `429` into a number. BentoML's own metrics and access
log are off, because they would write a series and a line for every path that a stranger invents.
"""

import gc

import bentoml

from mosa_deploy.errors import MosaError
from serving import log, server, tracing
from serving.app import attach, create_app
from serving.backend import Backend
from serving.inference_server import InferenceServer
from serving.leader import WorkerRendezvous
from serving.local_backend import LocalBackend
from serving.refusals import CLASSIFY
from serving.remote_backend import RemoteBackend
from serving.settings import Settings, unread_variables
from serving.store import check_store


def _settings() -> Settings:
    try:
        return Settings.from_environment()
    except MosaError as error:
        server.stop(error)


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
    inference_server: InferenceServer | None = None

    @bentoml.on_deployment  # type: ignore[untyped-decorator] # bentoml leaves it without types
    @staticmethod
    def supervise() -> None:
        """Find, in the process that starts the workers, what none of them could start with."""
        log.configure()
        try:
            tracing.exporters()
            check_store(settings)
        except MosaError as error:
            server.stop(error)
        server.supervise()

    def __init__(self) -> None:
        log.configure()
        log.words.info("settings: %s", settings.shown())
        for line in unread_variables():
            log.words.warning(line)
        try:
            if sent := tracing.configure():
                log.words.info("traces: %s", sent)
            self.backend = self._open()
        except (MosaError, OSError) as error:
            server.stop(error)
        attach(app, self.backend)

    def _open(self) -> Backend:
        """The backend of this worker: its own if it is the leader, else one that asks the leader."""
        if settings.workers == 1:
            return LocalBackend(settings)
        rendezvous = WorkerRendezvous.of_siblings()
        self.lock = rendezvous.claim()
        if self.lock is None:
            return RemoteBackend(rendezvous.socket)
        backend = LocalBackend(settings)
        self.inference_server = InferenceServer(backend, rendezvous.socket)
        return backend

    @bentoml.on_startup  # type: ignore[untyped-decorator] # bentoml leaves it without types
    async def on_start(self) -> None:
        """Offer the backend to the other workers, and prepare the server for its end."""
        server.prepare(settings.drain_s, app, [CLASSIFY])
        if self.inference_server:
            await self.inference_server.start()
        # Modules stay for good. Frozen, they are not walked through by every full garbage collection, which takes a
        # tenth of a second. The collection resets the count by which Python decides when the next full one is due.
        gc.freeze()
        gc.collect()

    async def __is_alive__(self) -> bool:
        return (await self.backend.health()).alive

    async def __is_ready__(self) -> bool:
        return (await self.backend.health()).ready

    @bentoml.on_shutdown  # type: ignore[untyped-decorator] # bentoml leaves it without types
    async def close(self) -> None:
        """Finish everything that is queued."""
        if self.inference_server:
            await self.inference_server.close()
        await self.backend.close()
        tracing.close()
