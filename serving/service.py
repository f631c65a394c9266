"""The BentoML service: `bentoml serve` answers every task of `MOSA_ARTIFACTS` over HTTP.

One FastAPI app is mounted at `/`, and there is no `@bentoml.api`: in a typed API a URL in place of a file would be
fetched by the server, a broken image would be a 500, and a task named `429` would arrive as a number.
"""

import os
import sys
import time
from typing import Annotated, Any

import bentoml
from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile

from mosa_deploy import __version__
from mosa_deploy.errors import USAGE_EXIT, DataError, MosaError
from mosa_deploy.store import Store
from serving.registry import Registry, ServedTask
from serving.schema import Answer, Fault, Prediction, TaskInfo, Tasks
from serving.settings import Settings

app = FastAPI(
    title="mosa-deploy",
    version=__version__,
    summary="One frozen vision transformer, one adapter a task, switched on each request.",
)

FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": Fault, "description": "The file is not an image."},
    404: {"model": Fault, "description": "No such task; the known ones are named."},
    503: {"model": Fault, "description": "The task is in the store, but its canary failed."},
}


@app.post("/classify", responses=FAULTS)
def classify(
    request: Request,
    image: Annotated[UploadFile, File(description="PNG, JPEG, WebP or another format that Pillow reads.")],
    task: Annotated[str, Form(description="The task's name, from `GET /v1/tasks`.")],
    top_k: Annotated[int, Form(ge=1, description="How many classes to answer.")] = 5,
) -> Answer:
    """Classify one image by one task."""
    served = find(request.app.state.registry, task)
    start = time.perf_counter()
    try:
        ranked = served.classify(image.file.read())
    except DataError as error:
        raise HTTPException(400, f"{image.filename}: {error}") from None
    return Answer(
        task=task,
        predictions=[Prediction(label=label, score=score) for label, score in ranked[:top_k]],
        bundle=served.record.sha256,
        milliseconds=round(1000 * (time.perf_counter() - start), 3),
    )


@app.get("/v1/tasks")
def tasks(request: Request) -> Tasks:
    """List the tasks that are served."""
    registry: Registry = request.app.state.registry
    return Tasks(
        tasks=[
            TaskInfo(
                task=name,
                classes=list(served.record.classes),
                backbone=served.record.backbone.folder,
                method=served.record.method,
                bundle=served.record.sha256,
            )
            for name, served in registry.tasks.items()
        ]
    )


def find(registry: Registry, task: str) -> ServedTask:
    """The task of that name, or the HTTP error that says why there is none."""
    if task in registry.refused:
        raise HTTPException(503, registry.refused[task])
    if task not in registry.tasks:
        raise HTTPException(404, f"unknown task '{task}'; known: {', '.join(registry.tasks)}")
    return registry.tasks[task]


@bentoml.service(name="mosa-deploy")
@bentoml.asgi_app(app, path="/")
class Classifier:
    """Opens the store when a worker starts."""

    def __init__(self) -> None:
        try:
            settings = Settings.from_environment()
            app.state.registry = Registry.open(Store(settings.artifacts), settings.threads)
        except MosaError as error:
            # An exception, SystemExit too, would reach the operator as a traceback of the server's own frames.
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(USAGE_EXIT)
