"""The HTTP routes: one FastAPI app at `/`.

`create_app` knows nothing of BentoML: `serving.service` mounts the app and gives it its backend.
"""

from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.middleware.cors import CORSMiddleware

from mosa_deploy import __version__
from mosa_deploy.bundles.decode import allow_pixels
from mosa_deploy.utils.processes import cores
from serving import metrics
from serving.backend import Backend
from serving.classify import ClassifyHandler
from serving.classify_route import add_classify_route
from serving.embed import EmbedHandler
from serving.embed_route import add_embed_route
from serving.errors import RequestError
from serving.middleware import LimitsMiddleware
from serving.pages import add_pages
from serving.refusals import UnknownPath, on_invalid, on_request_error, on_wrong_method
from serving.settings import Settings
from serving.task_routes import add_task_routes


def create_app(settings: Settings) -> FastAPI:
    """The app; `attach` gives it its backend."""
    allow_pixels(settings.max_pixels)
    app = FastAPI(
        title="mosa-deploy",
        version=__version__,
        summary="One frozen vision transformer, one adapter per task, switched on each request.",
        # FastAPI's own pages load their scripts from a CDN.
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.add_middleware(LimitsMiddleware, settings=settings)
    if settings.cors_origins:
        # Outside of the limits, so that a page sees their errors too. A key is a header, and no cookie is read.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PUT", "DELETE"),
            # Tracing adds headers of its own.
            allow_headers=("*",),
            expose_headers=("retry-after", "x-request-id"),
        )
    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(405, on_wrong_method)
    add_routes(app)
    return app


def attach(app: FastAPI, backend: Backend) -> None:
    """Give the app its backend."""
    settings: Settings = app.state.settings
    decoders = ThreadPoolExecutor(decoder_threads(settings, cores()), thread_name_prefix="mosa-decode")
    app.state.backend = backend
    app.state.classify_handler = ClassifyHandler(backend, settings, decoders)
    app.state.embed_handler = EmbedHandler(backend, settings, decoders)


def decoder_threads(settings: Settings, available: int) -> int:
    """How many threads of a process decode: what the settings say, else one for every two cores of its share."""
    return settings.decoders or max(2, available // (2 * settings.workers))


def add_routes(app: FastAPI) -> None:
    """Add all routes except `/livez` and `/readyz`, which are BentoML's."""
    add_classify_route(app)
    add_embed_route(app)
    add_task_routes(app)
    app.get(metrics.PATH, include_in_schema=False)(read_metrics)
    add_pages(app)
    app.router.routes.append(UnknownPath())


async def read_metrics(request: Request) -> Response:
    """All counts, as Prometheus reads them."""
    backend: Backend = request.app.state.backend
    metrics.ready.set((await backend.health()).ready)
    return Response(metrics.page(), media_type=metrics.CONTENT_TYPE)
