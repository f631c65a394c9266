"""What goes over HTTP between a client and the service, written down once: both use these models."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, model_validator

from mosa_deploy.bundles.decision import ChosenLane as ChosenLane
from mosa_deploy.bundles.decision import Source
from mosa_deploy.errors import DataError, unknown_name
from mosa_deploy.runtimes.names import Arithmetic, RunnerName

LaneName = Literal["shared", "folded", "unfolded"]
"""How a task is served: by the graph that all tasks share, by a folded graph of its own, or by its exported graph."""

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
    "multi_label": False,
    "thresholds": None,
    "backbone": "vit_tinyd6_patch4_32.cifar10-8bf6e2d1",
    "method": "mosa",
    "bundle": "3f0c8b5a9d21",
    "lane": "shared",
    "runtime": "onnxruntime-cpu",
    "precision": "fp32",
    "fallback": None,
    "fastest": None,
    "state": "active",
    "pinned": False,
    "can_roll_back": True,
    "reason": None,
    "accuracy": 0.97,
    "measured_on": "validation images of its tuning (digits)",
    "added": "2026-11-26T08:30:00Z",
    "served_since": "2026-11-26T08:30:00Z",
    "preprocess": {"size": [32, 32], "resize": "center", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "gate": None,
    "unknown": True,
}
VERSION: Example = {
    "bundle": "3f0c8b5a9d21",
    "served": True,
    "source": "upload",
    "added": "2026-11-26T08:30:00Z",
    "accuracy": 0.97,
    "classes": ["0", "1"],
}

DIGEST = r"^[0-9a-f]{1,64}$"
"""A version's digest, or the first characters of it."""


class Model(BaseModel):
    """One JSON object of a request or a response."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Sent(Model):
    """One JSON object of a request. A field that is not known is refused: ignored, it would change the answer."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _all_known(cls, given: Any) -> Any:
        for name in given if isinstance(given, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(unknown_name("field", str(name), cls.model_fields))
        return given


class Prediction(Model):
    """One class with its calibrated probability."""

    label: str
    score: float


class Answer(Model):
    """The classes of one image by one task, likeliest first.

    A task with several labels per image answers every label that reaches its threshold, perhaps none.
    """

    model_config = ConfigDict(json_schema_extra={"example": ANSWER})

    task: str
    predictions: tuple[Prediction, ...]
    bundle: str
    """sha256 of the adapter that answered."""
    milliseconds: float
    """From the image's bytes to the answer, in the service."""
    unknown: Annotated[float | None, Field(ge=0, le=1)] = None
    """How unknown the image is to the task, if that was asked for: the share of validation images that are less so."""
    abstained: bool | None = None
    """Whether `unknown` is above `abstain`, if that was given: no class is listed then."""
    note: str | None = None
    """Why `unknown` is missing although it was asked for."""

    @property
    def label(self) -> str:
        """The likeliest class.

        Raises:
            DataError: none is answered, as by a task with several labels per image, or because it abstained.
        """
        if self.abstained:
            raise DataError(f"'{self.task}' abstained, since this image is too unknown: read `labels`, which are empty")
        if not self.predictions:
            raise DataError(f"'{self.task}' finds none of its labels on this image: read `labels`, which may be empty")
        return self.predictions[0].label

    @property
    def labels(self) -> tuple[str, ...]:
        """All classes that are answered, the likeliest first."""
        return tuple(each.label for each in self.predictions)


class Failure(Model):
    """Why one image of several has no answer."""

    model_config = ConfigDict(json_schema_extra={"example": {"task": "digits", "status": 400, **FAULT}})

    task: str
    status: int
    """The HTTP status that a request of this image alone would have had."""
    detail: str


class Answers(Model):
    """The results of several images or tasks, in the order of the request: image by image, task by task."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"results": [ANSWER, {"task": "digits", "status": 400, **FAULT}]}}
    )

    results: tuple[Answer | Failure, ...]


class Gate(Model):
    """What a version answered on the labelled images that an upload brought, or that were kept."""

    images: int
    accuracy: float
    accuracy_before: float | None = None
    """That of the version which was served until then, on the same images; null if there was none to compare with."""
    margin: float
    """By how much the accuracy might be lower."""


class Task(Model):
    """A task of the store."""

    model_config = ConfigDict(json_schema_extra={"example": TASK})

    task: str
    classes: tuple[str, ...]
    multi_label: bool = False
    """Whether it answers with several labels per image, each by itself."""
    thresholds: tuple[float, ...] | None = None
    """The score from which on each of `classes` is answered; null if it answers with one class per image."""
    backbone: str
    method: str
    bundle: str
    lane: LaneName
    runtime: RunnerName | None = None
    """The runtime of its graph, once the task is active."""
    precision: Arithmetic | None = None
    """The precision in which the runtime computes."""
    fallback: str | None = None
    """Why it is served otherwise than the settings would have it first: what speaks against each faster file."""
    fastest: str | None = None
    """What `auto` found to be the fastest for its backbone on this machine, with the times; null without a choice."""
    state: Literal["active", "registered", "refused"]
    """`registered` tasks are loaded when they are asked."""
    pinned: bool
    can_roll_back: bool
    reason: str | None = None
    """Why it is refused."""
    accuracy: float | None = None
    """The accuracy of this version; null if its bundle does not say it, as of a converted adapter. Where an image has
    several labels, it is the share of images all of whose labels are right."""
    measured_on: str | None = None
    """The images of that accuracy."""
    added: datetime | None = None
    """When this version came to the store; null if that was not noted."""
    served_since: datetime | None = None
    """When it was chosen to be served; null if that was not noted."""
    preprocess: dict[str, Any] | None = None
    """How an image's bytes become what the backbone reads: decoded, resized, cropped to `size` (height, width), and
    normalised by `mean` and `std`."""
    gate: Gate | None = None
    """Only in the answer to an upload: how the version did on labelled images, if there are any."""
    unknown: bool = False
    """Whether its answers can say how unknown an image is."""


class Tasks(Model):
    """All tasks of the store."""

    model_config = ConfigDict(json_schema_extra={"example": {"tasks": [TASK]}})

    tasks: tuple[Task, ...]


class TaskVersion(Model):
    """A version of a task that the store keeps."""

    model_config = ConfigDict(json_schema_extra={"example": VERSION})

    bundle: str
    """sha256 of the adapter; a rollback takes it, or the first characters of it."""
    served: bool
    source: Source
    """How it came to the store: by `mosa export`, or by an upload."""
    added: datetime | None = None
    """When it came to the store; null if that was not noted."""
    accuracy: float | None = None
    """Its accuracy on the validation images of its tuning, if the bundle says it."""
    classes: tuple[str, ...]


class Versions(Model):
    """The versions of a task that the store keeps, the newest first."""

    model_config = ConfigDict(json_schema_extra={"example": {"versions": [VERSION]}})

    versions: tuple[TaskVersion, ...]


class Rollback(Sent):
    """The version to go back to."""

    digest: Annotated[str | None, Field(pattern=DIGEST)] = None
    """The version's `bundle`, or as many of its first characters as tell it from the others; without it, the version
    before."""


MOST_CLASSES = 1_000_000
"""The largest `top_k`."""


class ClassifyJson(Sent):
    """The body of `POST /classify` as JSON: `image` or `images`, and `task` or `tasks`."""

    model_config = ConfigDict(json_schema_extra={"example": {"image": "iVBORw0KGgo...", "task": "digits", "top_k": 3}})

    image: str | None = None
    """An image in base64, which may be a `data:` URL."""
    images: Annotated[tuple[str, ...] | None, Field(min_length=1)] = None
    """Several images. They are answered by a list."""
    task: str | tuple[str, ...] | None = None
    """The task of each image, or one task for all."""
    tasks: str | tuple[str, ...] | None = None
    """Several tasks for every image."""
    top_k: Annotated[StrictInt | None, Field(ge=1, le=MOST_CLASSES)] = None
    """How many classes to answer at most; if it is not given, 5, or of several labels all that reach their
    thresholds."""
    threshold: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    """The score from which on a label is answered, in the place of the task's own thresholds, for tasks with several
    labels per image."""
    unknown: StrictBool | None = None
    """Whether to say how unknown each image is to its task."""
    abstain: Annotated[StrictFloat | None, Field(ge=0, le=1)] = None
    """Answer no class for an image whose `unknown` is above this."""


class Pin(Sent):
    """Whether a task stays loaded."""

    pinned: Annotated[bool, Field(strict=True)] = True


class Fault(Model):
    """What was wrong with a request."""

    model_config = ConfigDict(json_schema_extra={"example": FAULT})

    detail: str
