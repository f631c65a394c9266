"""What a request is told that no route can answer: wrong values, methods, paths and query parameters."""

from typing import NoReturn

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from mosa_deploy.errors import nearest, unknown_name
from serving.assignment import REPEATABLE
from serving.errors import BodyError, RequestError, first_faults, shown
from serving.middleware import error_response

IMAGES = "images go to POST /classify"

CLASSIFY, EMBED = "/classify", "/v1/embed"

BESIDE = ("/livez", "/readyz")
"""Paths of the server around the app."""

NEAR = 0.7
"""How much like a page, or a path for operators, a path must look to be told of it; the API's own need less."""


async def on_request_error(request: Request, error: Exception) -> JSONResponse:
    """The response to an error that a route raised; to one of form, with a command that would have worked."""
    assert isinstance(error, RequestError)
    if isinstance(error, BodyError):
        error = RequestError(error.status, f"{error.reason}; this works: {command(request)}")
    return error_response(error)


def command(request: Request) -> str:
    """A command that asks `POST /classify` or `POST /v1/embed` well."""
    address = request.url.replace(query="")
    if "json" in request.headers.get("content-type", ""):
        sent = '{"image": "<base64>", "task": "digits"}'
        return f"curl -H 'Content-Type: application/json' -d '{sent}' {address}"
    return f"curl -F image=@photo.jpg -F task=digits {address}"


async def on_invalid(request: Request, fault: Exception) -> JSONResponse:
    """The response to parameters or a body that FastAPI refused."""
    assert isinstance(fault, RequestValidationError)
    return await on_request_error(request, _invalid(request, first_faults(fault.errors(), skip=1)))


def _invalid(request: Request, reason: str) -> RequestError:
    kind = BodyError if request.scope["route"].path in (CLASSIFY, EMBED) else RequestError
    return kind(422, reason)


async def on_wrong_method(request: Request, _: Exception) -> JSONResponse:
    """The response to a method that a path does not have."""
    # Starlette names the methods of the first route of a path, and a task's path has three.
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    here = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    allowed = ", ".join(sorted({method for route in here for method in route.methods or ()}))
    reason = f"{request.method} is not for {request.url.path}: send {allowed}"
    if "POST" not in allowed:
        reason = f"{reason}; {IMAGES}"
    elif request.url.path.endswith("/classify"):
        reason = f"{reason}; this works: {command(request)}"
    error = RequestError(405, reason)
    return error_response(error, {"allow": allowed})


async def known_query(request: Request) -> None:
    """A dependency of the routes that read or change something.

    Raises:
        RequestError: 422 if a query parameter is unknown, or is there twice where FastAPI would take the last one.
    """
    dependant: Dependant = request.scope["route"].dependant
    known = [field.alias for field in dependant.query_params]
    for name in request.query_params:
        if not known:
            raise _invalid(request, f"unknown query parameter '{shown(name)}'; {request.url.path} takes none")
        if name not in known:
            raise _invalid(request, unknown_name("query parameter", shown(name), known))
        if name not in REPEATABLE and len(request.query_params.getlist(name)) > 1:
            raise _invalid(request, f"`{name}` is in the query more than once: send it once")


class UnknownPath(BaseRoute):
    """The last route: what no other one matches is answered here, and not by the pages of the server around the app.

    It matches in part only, so a route that has the path but not the method comes first.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See starlette's BaseRoute."""
        return (Match.PARTIAL if scope["type"] == "http" else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> NoReturn:
        """Raises RequestError 404, with the nearest path."""
        request = Request(scope)
        routes = [route for route in request.app.routes if isinstance(route, Route)]
        path = shown(request.url.path)
        # With a slash too much, all that lies below the path would be as near as the path itself.
        stripped = {**scope, "path": scope["path"].rstrip("/")}
        here = any(route.matches(stripped)[0] is not Match.NONE for route in routes)
        beside = nearest(path, [*BESIDE, *(route.path for route in routes if not route.include_in_schema)], NEAR)
        known = {route.path for route in routes if route.include_in_schema}
        near = [path.rstrip("/")] if here else beside or known
        raise RequestError(404, f"{unknown_name('path', path, near)}; {IMAGES}")
