"""`POST /classify` reads a request in whatever form it comes: a form, JSON, or an image as the whole body.

Which images, by which tasks, is said by fields of the same names everywhere; beside an image as the body they stand in
the query. What is not known is refused, never ignored.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from mosa_deploy.client.schema import MOST_CLASSES, ClassifyJson
from mosa_deploy.errors import unknown_name
from serving.classify import SentImage, Wanted
from serving.errors import BodyError, RequestError, first_faults, shown
from serving.forms import URLENCODED, Part, read_multipart, read_urlencoded
from serving.image_text import image_from_text, unwrapped
from serving.images import foreign_kind, is_image

IMAGE_NAMES = ("image", "images", "file", "files")
"""The field of an image, and what other services call it."""

ONCE = ("top_k", "threshold")
"""The fields of text that have one value for the whole request."""

TEXTS = ("task", "tasks", *ONCE)

INDEX = re.compile(r"\[\w*\]$")
"""`image[]` and `image[0]` are how some libraries write a list."""

FORM_START = re.compile(rb"[\w.%+\[\]-]+=")

MULTIPART_START = re.compile(rb"--[^\r\n]+\r\nContent-(Disposition|Type):", re.IGNORECASE)

JSON_KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}

LONGEST_NAME = 100

Sent = tuple[str, bytes]
"""What messages call an image, and its bytes."""

Fields = Mapping[str, Sequence[str]]
"""The values of `TEXTS`, as they were sent."""

COUNT = TypeAdapter(Annotated[int, Field(ge=1, le=MOST_CLASSES)])
SHARE = TypeAdapter(Annotated[float, Field(ge=0, le=1)])


@dataclass(frozen=True)
class ClassifyRequest:
    """What a request asks for."""

    images: tuple[SentImage, ...]
    wanted: Wanted
    listed: bool
    """Whether the answer is a list, even of one result."""


def read_request(body: bytes, content_type: str, query: Fields, limit: int) -> ClassifyRequest:
    """Read a request; at most `limit` answers may be asked for.

    Raises:
        BodyError: 400 or 422; it is damaged, or it is not clear what it asks for.
        RequestError: 400 if it asks for too much.
    """
    images, fields, several = _read(body, content_type)
    for name in TEXTS:
        if query.get(name) and fields.get(name):
            raise BodyError(422, f"`{name}` is in the query and in the body: send it once")
    fields = {name: [*query.get(name, ()), *fields.get(name, ())] for name in TEXTS}
    if not images:
        raise BodyError(422, "`image` is missing: send one image at least")
    wanted = Wanted(
        count(fields["top_k"][0]) if fields["top_k"] else None,
        share(fields["threshold"][0]) if fields["threshold"] else None,
    )
    tasks = _names(fields["tasks"])
    sent = assign(images, [_name(each) for each in fields["task"]], tasks, limit)
    return ClassifyRequest(tuple(sent), wanted, listed=several or bool(tasks) or len(sent) > 1)


def _read(body: bytes, content_type: str) -> tuple[list[Sent], Fields, bool]:
    """The images, the fields, and whether images came as a list."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        return *_from_parts(read_multipart(body, content_type)), False
    if MULTIPART_START.match(body):
        said = f"says {shown(kind)}" if kind else "is missing"
        raise BodyError(400, f"the body is a form, but its Content-Type {said}: let your client write it")
    if "json" in kind or body.lstrip()[:1] in (b"{", b"["):
        return _from_json(body)
    if not body:
        raise BodyError(422, "the body is empty")
    if kind == URLENCODED and FORM_START.match(body):
        return *_from_parts([_with_plus(part) for part in read_urlencoded(body)]), False
    if kind == URLENCODED and not (b"\0" in body or b"\n" in body or body.isascii()):
        raise BodyError(400, "curl's -d drops line breaks and zeros from an image: send it with --data-binary")
    if _is_text(body):
        body = image_from_text(body.decode(), "the body")
    return [("the body", body)], {}, False


def _is_text(body: bytes) -> bool:
    """Whether a body is neither an image nor another kind of file, which may be ASCII too, as SVG is."""
    return body.isascii() and b"\0" not in body and not is_image(body) and foreign_kind(body) is None


def _from_parts(parts: Sequence[Part]) -> tuple[list[Sent], Fields]:
    images: list[Sent] = []
    fields: dict[str, list[str]] = {name: [] for name in TEXTS}
    for part in parts:
        name = _plain(part.name)
        if name in IMAGE_NAMES:
            # A browser sends an empty part where no file was chosen.
            images += [_image(part)] if part.content or part.filename else []
        elif name not in TEXTS:
            raise BodyError(422, unknown_name("field", shown(part.name), ("image", *TEXTS)))
        elif part.filename is not None:
            raise BodyError(422, f"`{name}` is a file: send it as text")
        else:
            fields[name].append(_utf8(part))
    for name in ONCE:
        if len(fields[name]) > 1:
            raise BodyError(422, f"`{name}` is there {len(fields[name])} times: send it once")
    return images, fields


def _with_plus(part: Part) -> Part:
    """A part of a urlencoded form; an unescaped `+` of base64 has arrived as a space."""
    if _plain(part.name) not in IMAGE_NAMES or is_image(part.content):
        return part
    return Part(part.name, part.content.replace(b" ", b"+"))


def _plain(name: str) -> str:
    return INDEX.sub("", name.strip())


def _image(part: Part) -> Sent:
    """An image of a form. A part without a filename may hold the image's bytes, or be text."""
    if part.filename is not None or is_image(part.content):
        return (part.filename or part.name)[:LONGEST_NAME], unwrapped(part.content)
    return part.name, image_from_text(_utf8(part), f"`{shown(part.name)}`")


def _utf8(part: Part) -> str:
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        raise BodyError(422, f"`{part.name}` is neither text nor an image") from None


def _from_json(body: bytes) -> tuple[list[Sent], Fields, bool]:
    try:
        given = json.loads(body, object_pairs_hook=_once)
    except BodyError:
        raise
    except (ValueError, RecursionError) as fault:
        if is_image(body):
            raise BodyError(400, "the body is an image, but its Content-Type says JSON: send image/jpeg") from None
        raise BodyError(400, f"the body is not JSON: {shown(str(fault))}") from None
    if not isinstance(given, dict):
        raise BodyError(422, f"the JSON is {JSON_KINDS.get(type(given), 'a number')}, not an object")
    try:
        asked = ClassifyJson.model_validate(given)
    except ValidationError as fault:
        raise BodyError(422, first_faults(fault.errors())) from None
    if asked.image is not None and asked.images is not None:
        raise BodyError(422, "`image` and `images` are both there: send one of them")
    texts = [("image", asked.image)] if asked.image is not None else []
    texts += [(f"images[{i}]", text) for i, text in enumerate(asked.images or ())]
    fields = {
        "task": _listed(asked.task),
        "tasks": _listed(asked.tasks),
        "top_k": [] if asked.top_k is None else [str(asked.top_k)],
        "threshold": [] if asked.threshold is None else [str(asked.threshold)],
    }
    return [(name, image_from_text(text, f"`{name}`")) for name, text in texts], fields, asked.images is not None


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, none of whose fields is there twice; Python would take the last one."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise BodyError(422, f"`{shown(name)}` is there twice: send it once")
        fields[name] = value
    return fields


def count(text: str) -> int:
    """A number of classes.

    Raises:
        BodyError: 422; it is none, or too large.
    """
    try:
        return COUNT.validate_python(text.strip())
    except ValidationError as fault:
        raise BodyError(422, f"top_k: {fault.errors()[0]['msg']}, not '{shown(text)}'") from None


def share(text: str) -> float:
    """A threshold.

    Raises:
        BodyError: 422; it is none.
    """
    try:
        return SHARE.validate_python(text.strip())
    except ValidationError as fault:
        raise BodyError(422, f"threshold: {fault.errors()[0]['msg']}, not '{shown(text)}'") from None


def _names(values: Sequence[str]) -> list[str]:
    """The names of `tasks`, each of whose values holds one or several between commas."""
    names = [name for value in values for name in map(_stripped, value.split(",")) if name]
    if values and not names:
        raise BodyError(422, "`tasks` is empty: name the tasks, between commas")
    return names


def _name(value: str) -> str:
    name = _stripped(value)
    if not name:
        raise BodyError(422, "`task` is empty: send the name of a task")
    if "," in name:
        raise BodyError(422, f"`task` is one name, and '{shown(name)}' has a comma: send several as `tasks`")
    return name


def _stripped(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BodyError(422, f"'{shown(text)}' has half a character") from None
    return text.strip().strip("\ufeff").strip()


def assign(images: Sequence[Sent], task: Sequence[str], tasks: Sequence[str], limit: int) -> list[SentImage]:
    """Decide which tasks classify which image.

    Raises:
        BodyError: 422; it is not clear.
        RequestError: 400; there are too many.
    """
    if bool(task) == bool(tasks):
        raise BodyError(422, "send `task`, once or for each image, or `tasks=a,b` for several tasks of every image")
    if tasks:
        by_image = [tuple(dict.fromkeys(tasks))] * len(images)
    elif len(task) in (1, len(images)):
        by_image = [(name,) for name in (task if len(task) == len(images) else [*task] * len(images))]
    else:
        raise BodyError(
            422, f"{len(images)} images and {len(task)} times `task`: send one for each image, or one for all"
        )
    count = sum(map(len, by_image))
    if count > limit:
        raise RequestError(400, f"{count} answers are asked for at once, {limit} are given: send less at once")
    return [SentImage(name, content, names) for (name, content), names in zip(images, by_image, strict=True)]
