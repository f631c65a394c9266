"""The requests that a client sends, and how their responses are read; `mosa_deploy.client.client` sends them."""

import base64
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.client.embeddings import Embedding, Embeddings
from mosa_deploy.client.schema import (
    Answer,
    Answers,
    ChosenLane,
    Failure,
    Pin,
    Task,
    Tasks,
    TaskVersion,
    Versions,
)
from mosa_deploy.utils.files import Content, read_content

T = TypeVar("T")

Picture = Content
"""An encoded image, or the path of its file."""


@dataclass(frozen=True)
class ApiRequest(Generic[T]):
    """One HTTP request, and how the body of its response is read."""

    method: str
    path: str
    parse: Callable[[bytes], T]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `httpx.Client.request`: the body and the query."""
    repeatable: bool = True
    """Whether sending it twice does the same as sending it once."""
    done_already: int | None = None
    """The status by which the service says that an earlier attempt, whose response was lost, has done it."""


class AnswerOptions(TypedDict, total=False):
    """What answers hold, beside how many classes."""

    threshold: float | None
    """The score from which on a label is answered, of a task with several labels per image."""
    unknown: bool
    """How unknown the image is to the task, from 0 to 1."""
    abstain: float | None
    """The same, and no class if the image is more unknown than this."""


def classify(picture: Picture, task: str, top_k: int | None, **options: Unpack[AnswerOptions]) -> ApiRequest[Answer]:
    """Classify one image by one task."""
    return ApiRequest(
        "POST", "/classify", Answer.model_validate_json, _form([picture], task=task, **_fields(top_k, options))
    )


def classify_many(
    pairs: Iterable[tuple[Picture, str]], top_k: int | None, batch: int, **options: Unpack[AnswerOptions]
) -> Iterator[ApiRequest[list[Answer | Failure]]]:
    """Classify images, each by its own task, `batch` images per request."""
    remaining = iter(pairs)
    while part := list(islice(remaining, batch)):
        pictures, tasks = zip(*part, strict=True)
        if len(part) == 1:
            # A lone `task` would be answered by an HTTP error instead of a Failure.
            yield classify_by(pictures[0], tasks, top_k, **options)
        else:
            yield ApiRequest("POST", "/classify", _results, _form(pictures, task=tasks, **_fields(top_k, options)))


def classify_by(
    picture: Picture, tasks: Sequence[str], top_k: int | None, **options: Unpack[AnswerOptions]
) -> ApiRequest[list[Answer | Failure]]:
    """Classify one image by several tasks; a text is one task."""
    tasks = [tasks] if isinstance(tasks, str) else tasks
    return ApiRequest("POST", "/classify", _results, _form([picture], tasks=",".join(tasks), **_fields(top_k, options)))


def embed_many(
    pictures: Iterable[Picture], task: str | None, backbone: str | None, normalise: bool, batch: int
) -> Iterator[ApiRequest[list[Embedding | Failure]]]:
    """The features of images, `batch` images per request."""
    given = {"task": task, "backbone": backbone, "normalise": normalise or None}
    fields = {name: value for name, value in given.items() if value is not None}
    remaining = iter(pictures)
    while part := list(islice(remaining, batch)):
        # A lone image in a form would be answered by an HTTP error instead of a Failure; in a list it is not.
        options = _form(part, **fields) if len(part) > 1 else {"json": {"images": [_data_url(part[0])], **fields}}
        yield ApiRequest("POST", "/v1/embed", _embeddings, options)


def tasks() -> ApiRequest[list[Task]]:
    """List every task."""
    return ApiRequest("GET", "/v1/tasks", lambda body: list(Tasks.model_validate_json(body).tasks))


def task(name: str) -> ApiRequest[Task]:
    """Describe one task."""
    return ApiRequest("GET", _path(name), Task.model_validate_json)


def put(
    name: str,
    bundle: Content,
    new_classes: bool,
    lane: ChosenLane | None,
    margin: float | None = None,
    force: bool = False,
) -> ApiRequest[Task]:
    """Serve a `.mosa` file, or the bundle in a folder, as a task's new version."""
    given = {"lane": lane, "margin": margin, "force": force or None}
    params = {"new_classes": new_classes, **{key: value for key, value in given.items() if value is not None}}
    return ApiRequest("PUT", _path(name), Task.model_validate_json, {"content": _packed(bundle), "params": params})


def remove(name: str, force: bool) -> ApiRequest[None]:
    """Stop serving a task, a pinned one only by `force`."""
    options = {"params": {"force": True}} if force else {}
    return ApiRequest("DELETE", _path(name), lambda _: None, options, done_already=404)


def versions(name: str) -> ApiRequest[list[TaskVersion]]:
    """List the versions of a task."""
    path = f"{_path(name)}/versions"
    return ApiRequest("GET", path, lambda body: list(Versions.model_validate_json(body).versions))


def roll_back(name: str, digest: str | None, new_classes: bool) -> ApiRequest[Task]:
    """Serve the version of a digest, or the previous one; a second rollback to that would undo the first."""
    options: dict[str, Any] = {"params": {"new_classes": True}} if new_classes else {}
    if digest is not None:
        options["json"] = {"digest": digest}
    path = f"{_path(name)}/rollback"
    return ApiRequest("POST", path, Task.model_validate_json, options, repeatable=digest is not None)


def pin(name: str, pinned: bool) -> ApiRequest[Task]:
    """Keep a task loaded, or stop keeping it."""
    body = {"json": Pin(pinned=pinned).model_dump()}
    return ApiRequest("POST", f"{_path(name)}/pin", Task.model_validate_json, body)


def _fields(top_k: int | None, options: AnswerOptions) -> dict[str, Any]:
    """The fields of a form that ask for so many classes, and for what the options say."""
    return {"top_k": top_k, **{name: value for name, value in options.items() if value is not False}}


def _results(body: bytes) -> list[Answer | Failure]:
    return list(Answers.model_validate_json(body).results)


def _embeddings(body: bytes) -> list[Embedding | Failure]:
    return list(Embeddings.model_validate_json(body).results)


def _path(task: str) -> str:
    return f"/v1/tasks/{quote(task, safe='')}"


def _form(pictures: Sequence[Picture], **fields: Any) -> dict[str, Any]:
    """A form of images; a field without a value is left out, and the service has its own."""
    images = [("image", (_name(picture), read_content(picture))) for picture in pictures]
    return {"files": images, "data": {name: value for name, value in fields.items() if value is not None}}


def _data_url(picture: Picture) -> str:
    return f"data:;base64,{base64.b64encode(read_content(picture)).decode()}"


def _name(picture: Picture) -> str:
    """What the service calls an image in its messages."""
    return Path(picture).name if isinstance(picture, str | os.PathLike) else "image"


def _packed(bundle: Content) -> bytes:
    """The bytes of a `.mosa` file.

    Raises:
        BundleError: the folder holds no whole bundle.
        DataError: there is no such file.
    """
    if isinstance(bundle, str | os.PathLike) and Path(bundle).is_dir():
        return Archive.of(Path(bundle)).pack()
    return read_content(bundle)
