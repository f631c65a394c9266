"""What the service answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mosa_deploy.bundles.canary import Arithmetic
from mosa_deploy.runtimes.runner import RunnerName

Example = dict[str, Any]

ANSWER: Example = {
    "task": "digits",
    "predictions": [{"label": "7", "score": 0.98}, {"label": "1", "score": 0.01}],
    "bundle": "3f0c8b5a9d21",
    "milliseconds": 4.2,
}
FAULT: Example = {"detail": "unknown task 'digit'; did you mean digits?"}
TASK: Example = {
    "task": "digits",
    "classes": ["0", "1"],
    "backbone": "vit_tinyd6_patch4_32.cifar10-8bf6e2d1",
    "method": "mosa",
    "bundle": "3f0c8b5a9d21",
    "lane": "shared",
    "runtime": "onnxruntime-cpu",
    "precision": "fp32",
    "state": "active",
    "pinned": False,
    "can_roll_back": True,
    "reason": None,
}


class Prediction(BaseModel):
    """One class with its calibrated probability."""

    label: str
    score: float


class Answer(BaseModel):
    """The classes of one image by one task, likeliest first."""

    model_config = ConfigDict(json_schema_extra={"example": ANSWER})

    task: str
    predictions: list[Prediction]
    bundle: str
    """sha256 of the adapter that answered."""
    milliseconds: float
    """From the image's bytes to the answer, in the service."""


class Failure(BaseModel):
    """Why one image of several has no answer."""

    model_config = ConfigDict(json_schema_extra={"example": {"task": "digits", "status": 400, **FAULT}})

    task: str
    status: int
    """The HTTP status that a request of this image alone would have had."""
    detail: str


class Answers(BaseModel):
    """The results of several images or tasks, in the order of the request: image by image, task by task."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"results": [ANSWER, {"task": "digits", "status": 400, **FAULT}]}}
    )

    results: list[Answer | Failure]


class TaskInfo(BaseModel):
    """A task of the store."""

    model_config = ConfigDict(json_schema_extra={"example": TASK})

    task: str
    classes: list[str]
    backbone: str
    method: str
    bundle: str
    lane: Literal["shared", "folded"]
    runtime: RunnerName | None = None
    """What runs its graph, once it is active."""
    precision: Arithmetic | None = None
    """What that computes in."""
    state: Literal["active", "registered", "refused"]
    """`registered` tasks are loaded when they are asked."""
    pinned: bool
    can_roll_back: bool
    reason: str | None = None
    """Why it is refused."""


class Tasks(BaseModel):
    """All tasks of the store."""

    model_config = ConfigDict(json_schema_extra={"example": {"tasks": [TASK]}})

    tasks: list[TaskInfo]


class Pin(BaseModel):
    """Whether a task stays loaded."""

    pinned: Annotated[bool, Field(strict=True)] = True


class Fault(BaseModel):
    """What was wrong with a request."""

    model_config = ConfigDict(json_schema_extra={"example": FAULT})

    detail: str
