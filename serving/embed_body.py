"""What a request to `POST /v1/embed` asks for; it comes in the forms that `serving.bodies` reads."""

from dataclasses import dataclass

from mosa_deploy.client.embeddings import EmbedJson
from serving.assignment import SentImage, assign, name_of, names_of
from serving.bodies import Fields, flag, read_fields
from serving.errors import BodyError


@dataclass(frozen=True)
class EmbedRequest:
    """What a request asks for."""

    images: tuple[SentImage, ...]
    """With their tasks; if `plain`, each with the name of a backbone, which is empty if none was named."""
    plain: bool
    """Whether the features are those of the plain backbone."""
    normalise: bool
    listed: bool
    """Whether the answer is a list, even of one result."""


def read_embed_request(body: bytes, content_type: str, query: Fields, limit: int) -> EmbedRequest:
    """Read a request; at most `limit` embeddings may be asked for.

    Raises:
        BodyError: 400 or 422; it is damaged, or it is not clear what it asks for.
        RequestError: 400 if it asks for too much.
    """
    images, fields, several = read_fields(body, content_type, query, EmbedJson)
    task, tasks, backbone = [name_of(each) for each in fields["task"]], names_of(fields["tasks"]), fields["backbone"]
    plain = not (task or tasks)
    if backbone and not plain:
        raise BodyError(422, "`backbone` means its plain features: send it, or a task")
    sent = assign(images, [backbone[0].strip() if backbone else ""] if plain else task, tasks, limit)
    normalise = bool(fields["normalise"]) and flag(fields["normalise"][0], "normalise")
    return EmbedRequest(tuple(sent), plain, normalise, listed=several or bool(tasks) or len(sent) > 1)
