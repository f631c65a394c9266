"""What goes over HTTP for `POST /v1/embed`; the rest is in `mosa_deploy.client.schema`."""

from typing import Annotated

from pydantic import ConfigDict, Field, StrictBool

from mosa_deploy.client.schema import FAULT, Example, Failure, Model, Sent

EMBEDDING: Example = {
    "task": "digits",
    "backbone": "vit_tinyd6_patch4_32.cifar10-8bf6e2d1",
    "bundle": "3f0c8b5a9d21",
    "embedding": [0.031, -0.127, 0.094],
    "milliseconds": 4.2,
}


class Embedding(Model):
    """The features of one image."""

    model_config = ConfigDict(json_schema_extra={"example": EMBEDDING})

    task: str | None = None
    """The task whose head reads them; missing if they are the plain backbone's."""
    backbone: str
    """The backbone, by its folder in the store."""
    bundle: str | None = None
    """sha256 of the adapter that changed them; missing if they are the plain backbone's."""
    embedding: tuple[float, ...]
    milliseconds: float
    """From the image's bytes to the answer, in the service."""


class Embeddings(Model):
    """The results of several images or tasks, in the order of the request: image by image, task by task."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"results": [EMBEDDING, {"task": "digits", "status": 400, **FAULT}]}}
    )

    results: tuple[Embedding | Failure, ...]


class EmbedJson(Sent):
    """The body of `POST /v1/embed` as JSON: `image` or `images`, and perhaps `task`, `tasks` or `backbone`."""

    model_config = ConfigDict(json_schema_extra={"example": {"image": "iVBORw0KGgo...", "normalise": True}})

    image: str | None = None
    """An image in base64, which may be a `data:` URL."""
    images: Annotated[tuple[str, ...] | None, Field(min_length=1)] = None
    """Several images. They are answered by a list."""
    task: str | tuple[str, ...] | None = None
    """The task of each image, or one task for all; without any the features are the plain backbone's."""
    tasks: str | tuple[str, ...] | None = None
    """Several tasks for every image."""
    backbone: str | None = None
    """The plain backbone, by its name or by its folder in the store; only needed if there are several."""
    normalise: StrictBool | None = None
    """Whether the features are divided by their Euclidean norm."""
