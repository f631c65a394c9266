"""The HTTP routes: one FastAPI app at `/`.

`create_app` knows nothing of BentoML: `serving.service` mounts the app and gives it its backend.
"""

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.routing import Match, Route

from mosa_deploy import __version__
from mosa_deploy.client.schema import Answer, Answers
from serving import metrics
from serving.auth import may_ask
from serving.backend import Backend
from serving.classify import ClassifyHandler, RequestStats, SentImage, result
from serving.errors import RequestError
from serving.middleware import LimitsMiddleware, error_response
from serving.settings import Settings
from serving.task_routes import ANYWHERE, NAMED_TASK, add_task_routes

NAMED = 5
"""The most faults of one request that are named; a form may have a thousand."""


def create_app(settings: Settings) -> FastAPI:
    """The app; `attach` gives it its backend."""
    app = FastAPI(
        title="mosa-deploy",
        version=__version__,
        summary="One frozen vision transformer, one adapter per task, switched on each request.",
    )
    app.state.settings = settings
    app.add_middleware(LimitsMiddleware, settings=settings)
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(405, _not_allowed)
    add_routes(app)
    return app


def attach(app: FastAPI, backend: Backend) -> None:
    """Give the app its backend."""
    app.state.backend = backend
    app.state.classify_handler = ClassifyHandler(backend, app.state.settings)


async def _request_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _invalid(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, RequestValidationError)
    found = [f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in fault.errors()]
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return error_response(RequestError(422, "; ".join(found[:NAMED]) + more))


async def _not_allowed(request: Request, _: Exception) -> JSONResponse:
    # Starlette names the methods of the first route of a path, and a task's path has three.
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    allowed = ", ".join(sorted({method for route in here for method in route.methods or ()}))
    error = RequestError(405, f"{request.method} is not for {request.url.path}: send {allowed}")
    return error_response(error, {"allow": allowed})


def add_routes(app: FastAPI) -> None:
    """Add all routes except `/livez` and `/readyz`, which are BentoML's."""
    app.post("/classify", dependencies=[Depends(may_ask)], responses=ANYWHERE | NAMED_TASK)(classify)
    add_task_routes(app)
    app.get("/metrics", include_in_schema=False)(read_metrics)


async def classify(
    request: Request,
    image: Annotated[
        list[UploadFile], File(min_length=1, description="PNG, JPEG, WebP or another format that Pillow reads.")
    ],
    task: Annotated[
        list[str],
        Form(
            description="The task of each image, or one task for all; names from `GET /v1/tasks`.",
            examples=[["digits"]],
        ),
    ] = [],  # noqa: B006 - FastAPI copies it
    tasks: Annotated[str, Form(description="Several tasks for every image, between commas.")] = "",
    top_k: Annotated[int, Form(ge=1, le=1_000_000, description="How many classes to answer.")] = 5,
) -> Answer | Answers:
    """Classify images, each by its task.

    One image by one `task` is answered alone, with the status of what went wrong. Several images, or `tasks`, are
    answered by a list of results, each an answer or a failure of its own.
    """
    settings: Settings = request.app.state.settings
    wanted = [name.strip() for name in tasks.split(",") if name.strip()]
    sent = assign([(file.filename or "image", await file.read()) for file in image], task, wanted, settings.max_images)
    handler: ClassifyHandler = request.app.state.classify_handler
    stats = RequestStats()
    results = await handler.handle(sent, top_k, stats)
    _add_to_log(request, sent, results, stats)
    if len(results) == 1 and not tasks:
        if isinstance(results[0], RequestError):
            raise results[0]
        return results[0]
    names = [name for one in sent for name in one.tasks]
    return Answers(results=tuple(result(name, each) for name, each in zip(names, results, strict=True)))


def assign(
    files: Sequence[tuple[str, bytes]], task: Sequence[str], tasks: Sequence[str], limit: int
) -> list[SentImage]:
    """Decide which tasks classify which file.

    Raises:
        RequestError: 400 if there are too many, 422 if it is not clear.
    """
    if bool(task) == bool(tasks):
        raise RequestError(422, "send `task`, once or for each image, or `tasks=a,b` for several tasks of every image")
    if tasks:
        by_file = [tuple(dict.fromkeys(tasks))] * len(files)
    elif len(task) in (1, len(files)):
        by_file = [(name,) for name in (task if len(task) == len(files) else [*task] * len(files))]
    else:
        raise RequestError(
            422, f"{len(files)} images and {len(task)} times `task`: send one for each image, or one for all"
        )
    count = sum(map(len, by_file))
    if count > limit:
        raise RequestError(400, f"{count} answers are asked for at once, {limit} are given: send less at once")
    return [SentImage(name, content, names) for (name, content), names in zip(files, by_file, strict=True)]


def _add_to_log(
    request: Request, sent: Sequence[SentImage], results: Sequence[Answer | RequestError], stats: RequestStats
) -> None:
    """Add known tasks, digests and times to the request's log line."""
    good = [each for each in results if isinstance(each, Answer)]
    request.state.log_fields.update(
        task=sorted({each.task for each in good}),
        lane=sorted(stats.lanes),
        digest=sorted({each.bundle[:12] for each in good}),
        images=len(sent),
        failed=len(results) - len(good),
        batch=stats.batch,
        **{f"{name}_ms": value for name, value in stats.parts.items()},
    )


async def read_metrics() -> Response:
    """All counts, as Prometheus reads them."""
    return Response(metrics.page(), media_type=metrics.CONTENT_TYPE)
