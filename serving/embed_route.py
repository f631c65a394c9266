"""`POST /v1/embed`, the route: the features of images, a task's own or the plain backbone's."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response

from mosa_deploy.client.embeddings import Embedding, Embeddings, EmbedJson
from mosa_deploy.client.schema import Failure
from serving.auth import SCHEMES, may_ask
from serving.bodies import listed
from serving.classify_route import IMAGE, TASK, TASKS, add_to_log
from serving.embed import EmbedHandler
from serving.embed_body import read_embed_request
from serving.errors import RequestError
from serving.handler import RequestStats
from serving.refusals import EMBED, known_query
from serving.settings import Settings
from serving.task_routes import ANYWHERE, NAMED_TASK

BACKBONE = "The plain backbone, by its name or its folder in the store; only needed if there are several."
NORMALISE = "Whether the features are divided by their Euclidean norm."

FORM = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "array", "minItems": 1, "items": IMAGE},
        "task": {"type": "array", "items": {"type": "string"}, "description": TASK, "example": ["digits"]},
        "tasks": {"type": "array", "items": {"type": "string"}, "description": TASKS},
        "backbone": {"type": "string", "description": BACKBONE},
        "normalise": {"type": "boolean", "description": NORMALISE},
    },
}

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "As for `POST /classify`.",
        "content": {
            "multipart/form-data": {"schema": FORM},
            "application/json": {"schema": EmbedJson.model_json_schema()},
            "image/*": {"schema": IMAGE},
            "application/octet-stream": {"schema": IMAGE},
        },
    }
}


def add_embed_route(app: FastAPI) -> None:
    """Add the route to the app."""
    ask = [*SCHEMES, Depends(may_ask), Depends(known_query)]
    described: Any = Embedding | Embeddings
    app.post(EMBED, dependencies=ask, responses=ANYWHERE | NAMED_TASK, response_model=described, openapi_extra=BODY)(
        embed
    )


async def embed(
    request: Request,
    task: Annotated[list[str], Query(description=TASK)] = [],  # noqa: B006 - it is never changed
    tasks: Annotated[list[str], Query(description=TASKS)] = [],  # noqa: B006 - as above
    backbone: Annotated[str | None, Query(description=BACKBONE)] = None,
    normalise: Annotated[bool | None, Query(description=NORMALISE)] = None,
) -> Response:
    """The features of images: those that a task's head reads, or without `task` those of the plain backbone.

    One image by one task, or by none, is answered alone, with the status of what went wrong. Several images, or
    `tasks`, are answered by a list of results, each an embedding or a failure of its own. Only the shared lane has
    features. For the plain backbone an image is read as by the first task, by name, that the shared lane has on it.
    """
    settings: Settings = request.app.state.settings
    given = {"task": task, "tasks": tasks, "backbone": backbone, "normalise": normalise}
    query = {name: listed(value) for name, value in given.items()}
    content_type = request.headers.get("content-type", "")
    asked = read_embed_request(await request.body(), content_type, query, settings.max_images)
    handler: EmbedHandler = request.app.state.embed_handler
    stats = RequestStats()
    results = await handler.handle(asked, stats)
    add_to_log(request, len(asked.images), [each if isinstance(each, Embedding) else None for each in results], stats)
    if not asked.listed:
        if isinstance(results[0], RequestError):
            raise results[0]
        return _json(results[0])
    names = [name for image in asked.images for name in image.tasks]
    return _json(Embeddings(results=tuple(map(_result, names, results))))


def _result(task: str, found: Embedding | RequestError) -> Embedding | Failure:
    if isinstance(found, Embedding):
        return found
    return Failure(task=task, status=found.status, detail=found.reason)


def _json(answer: Embedding | Embeddings) -> Response:
    # FastAPI would check every number again.
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")
