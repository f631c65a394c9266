"""The routes of `/v1/tasks`: what is served, and the changes of it."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request, Response

from mosa_deploy.bundles.record import TASK_NAME
from mosa_deploy.client.schema import DIGEST, ChosenLane, Fault, Pin, Rollback, Task, Tasks, Versions
from serving.auth import SCHEMES, may_ask, may_change
from serving.backend import Backend, PutOptions
from serving.errors import RequestError
from serving.refusals import known_query

WHY: dict[int, str] = {
    400: "The image, the bundle or the request is damaged, or there are too many at once.",
    401: "A key is needed.",
    403: "The service takes no changes, or none by this key.",
    404: "No such task; the nearest names are given.",
    408: "The body did not arrive in time.",
    409: "The change contradicts what is served.",
    413: "The body is larger than the limit.",
    415: "Not an image by its content, a pickle, or an encoding or a form that is not read here.",
    422: "A field is missing or impossible, or the bundle does not fit what is served.",
    503: "Too much is asked at once (see Retry-After), or the task's canary failed.",
    504: "The deadline passed.",
}


def faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route's description that are errors."""
    return {status: {"model": Fault, "description": WHY[status]} for status in statuses}


ANYWHERE = faults(400, 401, 408, 413, 415, 503, 504)
"""The errors of every route."""
NAMED_TASK = faults(404, 422)
"""The errors of a route that names a task."""
CHANGE = faults(403, 409)
"""The errors of a route that changes a task."""

Name = Annotated[str, Path(pattern=TASK_NAME, description="The task's name.", examples=["digits"])]
NewClasses = Annotated[bool, Query(description="Serve other class names than before.")]
Known = Annotated[str, Path(description="The name of a task that is served.", examples=["digits"])]
"""Any text, so that a name in capitals is answered with the nearest one."""
UPLOAD = {
    "required": True,
    "description": "A `.mosa` file.",
    "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
}


async def backend_of(request: Request) -> Backend:
    """The backend. Async for the same reason as in `serving.auth`."""
    backend: Backend = request.app.state.backend
    return backend


TheBackend = Annotated[Backend, Depends(backend_of)]


def add_task_routes(app: FastAPI) -> None:
    """Add the routes of tasks to the app."""
    ask, change = ([*SCHEMES, Depends(allowed), Depends(known_query)] for allowed in (may_ask, may_change))
    named = ANYWHERE | NAMED_TASK
    changed = named | CHANGE
    app.get("/v1/tasks", dependencies=ask, responses=ANYWHERE | faults(422))(list_tasks)
    app.get("/v1/tasks/{name}", dependencies=ask, responses=named)(read_task)
    app.get("/v1/tasks/{name}/versions", dependencies=ask, responses=named)(list_versions)
    body = {"requestBody": UPLOAD}
    app.put("/v1/tasks/{name}", dependencies=change, responses=changed, openapi_extra=body)(put_task)
    app.delete("/v1/tasks/{name}", dependencies=change, responses=changed, status_code=204)(delete_task)
    app.post("/v1/tasks/{name}/pin", dependencies=change, responses=changed)(pin_task)
    app.post("/v1/tasks/{name}/rollback", dependencies=change, responses=changed)(roll_back_task)


async def list_tasks(backend: TheBackend) -> Tasks:
    """List the tasks of the store."""
    return Tasks(tasks=tuple(await backend.tasks()))


async def read_task(name: Known, backend: TheBackend) -> Task:
    """What a task is, and how it is served."""
    return await backend.task(name)


async def put_task(
    request: Request,
    name: Name,
    backend: TheBackend,
    new_classes: NewClasses = False,
    lane: Annotated[ChosenLane | None, Query(description="How it is served from now on.")] = None,
    margin: Annotated[
        float | None, Query(gt=0, lt=1, description="By how much its accuracy on labelled images may be lower.")
    ] = None,
    force: Annotated[bool, Query(description="Serve it whatever the labelled images say.")] = False,
) -> Task:
    """Serve a `.mosa` bundle as this task, new or in place of its version now, once its canary passes.

    Requests in flight finish on the version they began with. The file may hold labelled images, as
    `gate/<class>/<file>`: the version is refused if its accuracy there is lower by more than the margin than that of
    the version that is served. They are kept, and compared again when the next upload brings none.
    """
    content = await request.body()
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise RequestError(415, f"a form is not read here: send the file itself, curl -T {name}.mosa {request.url}")
    if not content:
        raise RequestError(400, "the body is empty: send a .mosa file")
    info = await backend.put(name, content, PutOptions(new_classes, lane, margin, force))
    request.state.log_fields.update(task=name, digest=info.bundle[:12], lane=info.lane)
    return info


async def list_versions(name: Known, backend: TheBackend) -> Versions:
    """The versions of a task that the store keeps, the newest first; those of a removed task too."""
    return await backend.versions(name)


async def delete_task(
    name: Known,
    backend: TheBackend,
    force: Annotated[bool, Query(description="Remove it although it is pinned.")] = False,
) -> Response:
    """Stop serving a task; a rollback brings it back. A pinned task is only removed by `force`."""
    await backend.remove(name, force)
    return Response(status_code=204)


async def pin_task(name: Known, backend: TheBackend, pin: Pin | None = None) -> Task:
    """Load a task and keep it loaded; `{"pinned": false}` lets it go again."""
    return await backend.pin(name, True if pin is None else pin.pinned)


async def roll_back_task(
    name: Known,
    backend: TheBackend,
    digest: Annotated[
        str | None, Query(pattern=DIGEST, description="The version's digest, or the first characters of it.")
    ] = None,
    new_classes: NewClasses = False,
    rollback: Rollback | None = None,
) -> Task:
    """Serve the version before this one, or the version of a digest, which may also come in the body.

    Without a digest a second rollback takes the first one back. A version with other classes needs `new_classes`.
    """
    named = rollback.digest if rollback else None
    if named and digest and named != digest:
        raise RequestError(422, "the query and the body name two digests: send one")
    return await backend.rollback(name, digest or named, new_classes)
