"""What a client sends to the service and what the answers say; `mosa_deploy.client.client` does the sending."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")

Picture = bytes | Path
"""An encoded image, or the path of its file."""


@dataclass(frozen=True)
class Prediction:
    """One class with its calibrated probability."""

    label: str
    score: float


@dataclass(frozen=True)
class Answer:
    """What a task says of an image, likeliest first; `bundle` is the digest of the version that said it."""

    task: str
    predictions: tuple[Prediction, ...]
    bundle: str
    milliseconds: float

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.predictions[0].label


@dataclass(frozen=True)
class Failure:
    """Why an image has no answer; `status` is HTTP's."""

    task: str
    status: int
    detail: str


@dataclass(frozen=True)
class Task:
    """A task as the service has it."""

    task: str
    classes: tuple[str, ...]
    backbone: str
    method: str
    bundle: str
    lane: Literal["shared", "folded"]
    runtime: str | None
    precision: str | None
    state: Literal["active", "registered", "refused"]
    pinned: bool
    can_roll_back: bool
    reason: str | None


@dataclass(frozen=True)
class ApiRequest(Generic[T]):
    """One HTTP request, and how the JSON of its answer reads."""

    method: str
    path: str
    read: Callable[[Any], T]
    options: Mapping[str, Any] = field(default_factory=dict)


def classify(picture: Picture, task: str, top_k: int) -> ApiRequest[Answer]:
    """One image by one task."""
    return ApiRequest("POST", "/classify", _answer, _form([picture], {"task": task, "top_k": top_k}))


def classify_many(
    asked: Iterable[tuple[Picture, str]], top_k: int, batch: int
) -> Iterator[ApiRequest[list[Answer | Failure]]]:
    """Images, each with its task, `batch` in a request."""
    left = iter(asked)
    while part := list(islice(left, batch)):
        form = _form([picture for picture, _ in part], {"task": [task for _, task in part], "top_k": top_k})
        yield ApiRequest("POST", "/classify", _results, form)


def classify_by(picture: Picture, tasks: Sequence[str], top_k: int) -> ApiRequest[list[Answer | Failure]]:
    """One image by several tasks."""
    return ApiRequest("POST", "/classify", _results, _form([picture], {"tasks": ",".join(tasks), "top_k": top_k}))


def tasks() -> ApiRequest[list[Task]]:
    """Every task."""
    return ApiRequest("GET", "/v1/tasks", lambda found: [_task(each) for each in found["tasks"]])


def task(name: str) -> ApiRequest[Task]:
    """One task."""
    return ApiRequest("GET", f"/v1/tasks/{name}", _task)


def put(name: str, bundle: Picture, new_classes: bool, lane: str | None) -> ApiRequest[Task]:
    """A `.mosa` file, or a folder's bundle, as a task's new version."""
    params = {"new_classes": new_classes} | ({"lane": lane} if lane else {})
    return ApiRequest("PUT", f"/v1/tasks/{name}", _task, {"content": _mosa(bundle), "params": params})


def remove(name: str) -> ApiRequest[None]:
    """Stop serving a task."""
    return ApiRequest("DELETE", f"/v1/tasks/{name}", lambda _: None)


def roll_back(name: str) -> ApiRequest[Task]:
    """Serve the version before."""
    return ApiRequest("POST", f"/v1/tasks/{name}/rollback", _task)


def pin(name: str, pinned: bool) -> ApiRequest[Task]:
    """Keep a task loaded, or no longer."""
    return ApiRequest("POST", f"/v1/tasks/{name}/pin", _task, {"json": {"pinned": pinned}})


def _form(pictures: Sequence[Picture], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"files": [("image", _file(picture)) for picture in pictures], "data": fields}


def _file(picture: Picture) -> tuple[str, bytes]:
    return (picture.name, picture.read_bytes()) if isinstance(picture, Path) else ("image", picture)


def _mosa(bundle: Picture) -> bytes:
    if isinstance(bundle, Path) and bundle.is_dir():
        from mosa_deploy.bundles.archive import Archive

        return Archive.of(bundle).pack()
    return bundle.read_bytes() if isinstance(bundle, Path) else bundle


def _answer(fields: Mapping[str, Any]) -> Answer:
    predictions = tuple(Prediction(each["label"], each["score"]) for each in fields["predictions"])
    return Answer(fields["task"], predictions, fields["bundle"], fields["milliseconds"])


def _results(fields: Mapping[str, Any]) -> list[Answer | Failure]:
    """Those of several, or of one."""
    return [
        _answer(each) if "predictions" in each else Failure(each["task"], each["status"], each["detail"])
        for each in fields.get("results", [fields])
    ]


def _task(fields: Mapping[str, Any]) -> Task:
    return Task(**{**fields, "classes": tuple(fields["classes"])})
