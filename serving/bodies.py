"""`POST /classify` reads a request in whatever form it comes: a form, JSON, or an image as the whole body.

Which images, by which tasks, is said by fields of the same names everywhere; beside an image as the body they stand in
the query. What is not known is refused, never ignored. `POST /v1/embed` reads the same forms with fields of its own,
see `serving.embed_body`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from mosa_deploy.client.schema import MOST_CLASSES, ClassifyJson
from mosa_deploy.errors import unknown_name
from serving.assignment import REPEATABLE, Sent, SentImage, assign, name_of, names_of
from serving.classify import Wanted
from serving.errors import BodyError, first_faults, shown
from serving.forms import URLENCODED, Part, read_multipart, read_urlencoded
from serving.image_text import image_from_text, unwrapped
from serving.images import foreign_kind, is_image

IMAGE_NAMES = ("image", "images", "file", "files")
"""The field of an image, and what other services call it."""

OF_IMAGES = ("image", "images")
"""The fields of JSON that hold images; all others are texts, in a form and in the query."""

ONCE = ("top_k", "threshold", "unknown", "abstain")
"""The fields of text that have one value for the whole request."""

TEXTS = ("task", "tasks", *ONCE)

INDEX = re.compile(r"\[\w*\]$")
"""`image[]` and `image[0]` are how some libraries write a list."""

FORM_START = re.compile(rb"[\w.%+\[\]-]+=")

MULTIPART_START = re.compile(rb"--[^\r\n]+\r\nContent-(Disposition|Type):", re.IGNORECASE)

JSON_KINDS = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}

LONGEST_NAME = 100

Fields = Mapping[str, Sequence[str]]
"""The values of the texts, as they were sent."""

COUNT = TypeAdapter(Annotated[int, Field(ge=1, le=MOST_CLASSES)])
SHARE = TypeAdapter(Annotated[float, Field(ge=0, le=1)])
FLAGS = {"true": True, "false": False}


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
    images, fields, several = read_fields(body, content_type, query, ClassifyJson)
    tasks = names_of(fields["tasks"])
    sent = assign(images, [name_of(each) for each in fields["task"]], tasks, limit)
    return ClassifyRequest(tuple(sent), wanted(fields), listed=several or bool(tasks) or len(sent) > 1)


def wanted(fields: Fields) -> Wanted:
    """What the texts say of the answers. `abstain` asks for `unknown` too."""
    top_k, threshold, unknown, abstain = (next(iter(fields[name]), None) for name in ONCE)
    return Wanted(
        None if top_k is None else count(top_k),
        None if threshold is None else share(threshold, "threshold"),
        abstain is not None or (unknown is not None and flag(unknown, "unknown")),
        None if abstain is None else share(abstain, "abstain"),
    )


def read_fields(
    body: bytes, content_type: str, query: Fields, described: type[BaseModel]
) -> tuple[list[Sent], Fields, bool]:
    """The images, the texts of the query and the body, and whether images came as a list.

    `described` is the body as JSON, whose fields have the same names in other forms.

    Raises:
        BodyError: as `read_request`.
    """
    texts = TEXTS if described is ClassifyJson else tuple(n for n in described.model_fields if n not in OF_IMAGES)
    images, fields, several = _read(body, content_type, texts, described)
    for name in texts:
        if query.get(name) and fields.get(name):
            raise BodyError(422, f"`{name}` is in the query and in the body: send it once")
    if not images:
        raise BodyError(422, "`image` is missing: send one image at least")
    return images, {name: [*query.get(name, ()), *fields.get(name, ())] for name in texts}, several


def _read(
    body: bytes, content_type: str, texts: Sequence[str], described: type[BaseModel]
) -> tuple[list[Sent], Fields, bool]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        return *_from_parts(read_multipart(body, content_type), texts), False
    if MULTIPART_START.match(body):
        said = f"says {shown(kind)}" if kind else "is missing"
        raise BodyError(400, f"the body is a form, but its Content-Type {said}: let your client write it")
    if "json" in kind or body.lstrip()[:1] in (b"{", b"["):
        return _from_json(body, texts, described)
    if not body:
        raise BodyError(422, "the body is empty")
    if kind == URLENCODED and FORM_START.match(body):
        return *_from_parts([_with_plus(part) for part in read_urlencoded(body)], texts), False
    if kind == URLENCODED and not (b"\0" in body or b"\n" in body or body.isascii()):
        raise BodyError(400, "curl's -d drops line breaks and zeros from an image: send it with --data-binary")
    if _is_text(body):
        body = image_from_text(body.decode(), "the body")
    return [("the body", body)], {}, False


def _is_text(body: bytes) -> bool:
    """Whether a body is neither an image nor another kind of file, which may be ASCII too, as SVG is."""
    return body.isascii() and b"\0" not in body and not is_image(body) and foreign_kind(body) is None


def _from_parts(parts: Sequence[Part], texts: Sequence[str]) -> tuple[list[Sent], Fields]:
    images: list[Sent] = []
    fields: dict[str, list[str]] = {name: [] for name in texts}
    for part in parts:
        name = _plain(part.name)
        if name in IMAGE_NAMES:
            # A browser sends an empty part where no file was chosen.
            images += [_image(part)] if part.content or part.filename else []
        elif name not in texts:
            raise BodyError(422, unknown_name("field", shown(part.name), ("image", *texts)))
        elif part.filename is not None:
            raise BodyError(422, f"`{name}` is a file: send it as text")
        else:
            fields[name].append(_utf8(part))
    for name, values in fields.items():
        if len(values) > 1 and name not in REPEATABLE:
            raise BodyError(422, f"`{name}` is there {len(values)} times: send it once")
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


def _from_json(body: bytes, names: Sequence[str], described: type[BaseModel]) -> tuple[list[Sent], Fields, bool]:
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
        asked = dict(described.model_validate(given))
    except ValidationError as fault:
        raise BodyError(422, first_faults(fault.errors())) from None
    alone, several = asked["image"], asked["images"]
    if alone is not None and several is not None:
        raise BodyError(422, "`image` and `images` are both there: send one of them")
    texts = [("image", alone)] if alone is not None else []
    texts += [(f"images[{i}]", text) for i, text in enumerate(several or ())]
    fields = {name: listed(asked[name]) for name in names}
    return [(name, image_from_text(text, f"`{name}`")) for name, text in texts], fields, several is not None


def listed(value: str | Sequence[str] | float | None) -> list[str]:
    """The value of a field of JSON, or of a parameter, as a form would hold it."""
    if value is None:
        return []
    if isinstance(value, str | int | float):
        return [str(value).lower() if isinstance(value, bool) else str(value)]
    return list(value)


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


def share(text: str, name: str) -> float:
    """A number from 0 to 1; errors call it `name`.

    Raises:
        BodyError: 422; it is none.
    """
    try:
        return SHARE.validate_python(text.strip())
    except ValidationError as fault:
        raise BodyError(422, f"{name}: {fault.errors()[0]['msg']}, not '{shown(text)}'") from None


def flag(text: str, name: str) -> bool:
    """`true` or `false`; errors call it `name`.

    Raises:
        BodyError: 422; it is neither.
    """
    value = FLAGS.get(text.strip().lower())
    if value is None:
        raise BodyError(422, f"{name}: true or false, not '{shown(text)}'")
    return value
