"""`POST /classify`, the route: reads the request, has it handled, and answers alone or with a list."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.routing import APIRoute

from mosa_deploy.client.embeddings import Embedding
from mosa_deploy.client.schema import MOST_CLASSES, Answer, Answers, ClassifyJson
from serving.auth import SECURITY, may_ask
from serving.bodies import TEXTS, Fields, listed, read_request
from serving.classify import ClassifyHandler, result
from serving.errors import RequestError
from serving.handler import RequestStats
from serving.refusals import CLASSIFY, known_query
from serving.settings import Settings
from serving.task_routes import ANYWHERE, NAMED_TASK

IMAGE = {"type": "string", "format": "binary"}

TASK = "The task of each image, or one task for all; names from `GET /v1/tasks`."
TASKS = "Several tasks for every image: between commas, or sent several times."
TOP_K = (
    "How many classes to answer at most; if it is not given, 5, or of several labels all that reach their thresholds."
)
THRESHOLD = (
    "The score from which on a label is answered, in the place of the task's own thresholds, for tasks with several"
    " labels per image."
)
UNKNOWN = "Whether to say how unknown each image is to its task."
ABSTAIN = "Answer no class for an image whose `unknown` is above this."

FORM = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": {
            "type": "array",
            "minItems": 1,
            "items": IMAGE,
            "description": "PNG, JPEG, WebP or another format that Pillow reads. `images`, `file` and `files` mean the"
            " same, and base64 without a filename is read too.",
        },
        "task": {"type": "array", "items": {"type": "string"}, "description": TASK, "example": ["digits"]},
        "tasks": {"type": "array", "items": {"type": "string"}, "description": TASKS},
        "top_k": {"type": "integer", "minimum": 1, "maximum": MOST_CLASSES, "description": TOP_K},
        "threshold": {"type": "number", "minimum": 0, "maximum": 1, "description": THRESHOLD},
        "unknown": {"type": "boolean", "description": UNKNOWN},
        "abstain": {"type": "number", "minimum": 0, "maximum": 1, "description": ABSTAIN},
    },
}

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A form, JSON with images in base64, or an image itself, with `task` in the query."
        " `Content-Encoding: gzip` and `deflate` are read.",
        "content": {
            "multipart/form-data": {"schema": FORM},
            "application/json": {"schema": ClassifyJson.model_json_schema()},
            "image/*": {"schema": IMAGE},
            "application/octet-stream": {"schema": IMAGE},
        },
    }
}


def add_classify_route(app: FastAPI) -> None:
    """Add the route to the app."""
    app.router.add_api_route(
        CLASSIFY,
        classify,
        methods=["POST"],
        responses=ANYWHERE | NAMED_TASK,
        openapi_extra={**BODY, "security": SECURITY},
        route_class_override=ClassifyRoute,
    )


class ClassifyRoute(APIRoute):
    """A route that FastAPI describes, and that reads its query and writes its answer itself.

    FastAPI takes longer to solve dependencies and to check what is answered than all that is said here.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        return answered


async def answered(request: Request) -> Response:
    """Check the request, have it classified, and write the answer as JSON."""
    await may_ask(request)
    await known_query(request)
    query = request.query_params
    answer = await classified(request, {name: query.getlist(name) for name in TEXTS})
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


async def classify(
    request: Request,
    task: Annotated[list[str], Query(description=TASK)] = [],  # noqa: B006 - it is never changed
    tasks: Annotated[list[str], Query(description=TASKS)] = [],  # noqa: B006 - as above
    top_k: Annotated[int | None, Query(ge=1, le=MOST_CLASSES, description=TOP_K)] = None,
    threshold: Annotated[float | None, Query(ge=0, le=1, description=THRESHOLD)] = None,
    unknown: Annotated[bool | None, Query(description=UNKNOWN)] = None,
    abstain: Annotated[float | None, Query(ge=0, le=1, description=ABSTAIN)] = None,
) -> Answer | Answers:
    """Classify images, each by its task.

    One image by one `task` is answered alone, with the status of what went wrong. Several images, or `tasks`, are
    answered by a list of results, each an answer or a failure of its own. `task`, `tasks` and all others stand in the
    form or the JSON, or in the query.
    """
    # FastAPI describes the route by this function, and `answered` is what runs.
    given = {"task": task, "tasks": tasks, "top_k": top_k, "threshold": threshold}
    given |= {"unknown": unknown, "abstain": abstain}
    return await classified(request, {name: listed(value) for name, value in given.items()})


async def classified(request: Request, query: Fields) -> Answer | Answers:
    """Have a request classified whose query holds these texts."""
    settings: Settings = request.app.state.settings
    content_type = request.headers.get("content-type", "")
    asked = read_request(await request.body(), content_type, query, settings.max_images)
    handler: ClassifyHandler = request.app.state.classify_handler
    stats = RequestStats()
    results = await handler.handle(asked.images, asked.wanted, stats)
    add_to_log(request, len(asked.images), [each if isinstance(each, Answer) else None for each in results], stats)
    if not asked.listed:
        if isinstance(results[0], RequestError):
            raise results[0]
        return results[0]
    names = [name for image in asked.images for name in image.tasks]
    return Answers(results=tuple(result(name, each) for name, each in zip(names, results, strict=True)))


def add_to_log(
    request: Request, images: int, results: Sequence[Answer | Embedding | None], stats: RequestStats
) -> None:
    """Add known tasks, digests and times to the request's log line; a result of None failed."""
    good = [each for each in results if each is not None]
    request.state.log_fields.update(
        task=sorted({each.task for each in good if each.task}),
        lane=sorted(stats.lanes),
        digest=sorted({each.bundle[:12] for each in good if each.bundle}),
        images=images,
        failed=len(results) - len(good),
        batch=stats.batch,
        **{f"{name}_ms": value for name, value in stats.parts.items()},
    )
