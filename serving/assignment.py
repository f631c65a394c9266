"""Which task answers which image of a request: what `task` and `tasks` say."""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.errors import BodyError, RequestError, shown

REPEATABLE = ("task", "tasks")
"""What a query and a form may hold more than once."""

Sent = tuple[str, bytes]
"""What messages call an image, and its bytes."""


@dataclass(frozen=True)
class SentImage:
    """One image file of a request, with the tasks that should answer it."""

    name: str
    content: bytes
    tasks: tuple[str, ...]


def names_of(values: Sequence[str]) -> list[str]:
    """The names of `tasks`, each of whose values holds one or several between commas."""
    names = [name for value in values for name in map(_stripped, value.split(",")) if name]
    if values and not names:
        raise BodyError(422, "`tasks` is empty: name the tasks, between commas")
    return names


def name_of(value: str) -> str:
    """The name in a value of `task`."""
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
