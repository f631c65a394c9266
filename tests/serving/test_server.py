"""What is taken out of BentoML's layers around the app, and what passes them by."""

import asyncio
from typing import Any

import httpx
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from serving.server import DirectRoutes, is_traced, remove_timer


class Layer:
    """A layer that is not BentoML's timer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, *_: Any) -> None:
        raise NotImplementedError


class Namesake(Layer):
    """A layer of the same name as the timer."""


Namesake.__name__ = TimeoutMiddleware.__name__


def layers(app: Any) -> list[type]:
    """The classes of an app's layers, the outermost first."""
    found = []
    while app is not None:
        found.append(type(app))
        app = getattr(app, "middleware_stack", None) or getattr(app, "app", None)
    return found


@pytest.mark.parametrize("other", [Layer, Namesake])
def test_bentoml_s_timer_is_removed_and_every_other_layer_stays(other: type[Layer]) -> None:
    app = Starlette(middleware=[Middleware(other), Middleware(TimeoutMiddleware, timeout=60), Middleware(other)])
    app.middleware_stack = app.build_middleware_stack()
    before = layers(app)
    assert before.count(TimeoutMiddleware) == 1
    remove_timer(app)
    assert layers(app) == [layer for layer in before if layer is not TimeoutMiddleware]


def test_only_the_direct_paths_pass_the_layers_by() -> None:
    app = DirectRoutes(PlainTextResponse("ours"), frozenset(["/classify"]), PlainTextResponse("theirs"))

    async def texts() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return [(await client.post(path)).text for path in ("/classify", "/classify/", "/v1/tasks", "/livez")]

    assert asyncio.run(texts()) == ["ours", "theirs", "theirs", "theirs"]


def test_traces_that_are_sent_somewhere_are_kept() -> None:
    assert not is_traced()
    BentoMLContainer.tracing.exporter_type.set("otlp")
    try:
        assert is_traced()
    finally:
        BentoMLContainer.tracing.exporter_type.set(None)
