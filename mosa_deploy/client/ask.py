"""Ask a running service about images: `mosa ask image.jpg --task digits`, or for their features: `--embed`."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.bundles.answers import threshold_fault
from mosa_deploy.bundles.image_files import find_images
from mosa_deploy.client.client import Client
from mosa_deploy.client.embeddings import Embedding
from mosa_deploy.client.requests import AnswerOptions
from mosa_deploy.client.schema import Answer, Failure
from mosa_deploy.errors import ConfigError, ServiceError
from mosa_deploy.utils.files import printable

OF_THE_IMAGE = (400, 413, 415)
"""Statuses of a request whose image cannot be used; the next one may be fine."""


@dataclass(frozen=True)
class AskConfig:
    """What `mosa ask` is asked for."""

    images: Sequence[Path]
    """Files, and folders of files."""
    tasks: Sequence[str]
    """None only if `embed` is set: the features are the plain backbone's then."""
    address: str
    key: str | None = None
    top_k: int | None = None
    threshold: float | None = None
    abstain: float | None = None
    embed: bool = False
    """Whether to print features instead of classes."""
    backbone: str | None = None
    normalise: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for options that contradict each other."""
        if fault := threshold_fault(self.threshold):
            raise ConfigError(f"--threshold {fault}")
        if self.abstain is not None and not 0 <= self.abstain <= 1:
            raise ConfigError(f"--abstain {self.abstain:g}: a number from 0 to 1")
        if self.embed and (self.abstain, self.threshold, self.top_k) != (None, None, None):
            raise ConfigError("--abstain, --threshold and --top-k are for classes: leave them out, or --embed")
        if not self.embed and (self.backbone or self.normalise):
            raise ConfigError("--backbone and --normalise are for features: add --embed")
        if self.backbone and self.tasks:
            raise ConfigError("--backbone means its plain features: give it, or --task")


def ask(config: AskConfig) -> None:
    """Print a line for each image and task.

    Raises:
        DataError: a place does not exist, or there are no images.
        ServiceError: a result has no answer.
    """
    files, left_out = find_images(config.images)
    if left_out:
        print(left_out, file=sys.stderr if config.embed else sys.stdout)
    failed: list[Failure] = []
    with Client(config.address, config.key) as client:
        for image in files:
            for result in embeddings(client, image, config) if config.embed else answers(client, image, config):
                if isinstance(result, Failure):
                    failed.append(result)
                print(row(image, result) if isinstance(result, Embedding) else f"{printable(image)}: {line(result)}")
    if failed:
        count = "one result has" if len(failed) == 1 else f"{len(failed)} results have"
        raise ServiceError(failed[0].status, f"{count} no answer, see above")


def answers(client: Client, image: Path, config: AskConfig) -> list[Answer | Failure]:
    """The results of an image; one failure per task if the service refuses the image itself.

    Raises:
        ServiceError: the service refuses more than the image.
    """
    try:
        options: AnswerOptions = {"threshold": config.threshold, "abstain": config.abstain}
        return client.classify_by(image, config.tasks, config.top_k, **options)
    except ServiceError as fault:
        if fault.status not in OF_THE_IMAGE:
            raise
        return [Failure(task=task, status=fault.status, detail=fault.detail) for task in config.tasks]


def embeddings(client: Client, image: Path, config: AskConfig) -> Iterator[Embedding | Failure]:
    """The features of an image by each task, or by the plain backbone."""
    tasks: Sequence[str | None] = config.tasks or [None]
    for task in tasks:
        yield from client.embed_many([image], task, config.backbone, config.normalise)


def row(image: Path, found: Embedding) -> str:
    """The features of an image as one line of JSON."""
    return json.dumps({"file": printable(image), **found.model_dump(exclude_none=True)})


def line(result: Answer | Failure) -> str:
    """A result in one line."""
    if isinstance(result, Failure):
        return f"{result.task}: no answer ({result.status}): {result.detail}"
    classes = ", ".join(f"{each.label} {each.score:.3f}" for each in result.predictions)
    known = "" if result.unknown is None else f", unknown {result.unknown:.3f}"
    note = f"; {result.note}" if result.note else ""
    said = classes or ("no class" if result.abstained else "no label")
    return f"{result.task}: {said}   (bundle {result.bundle[:12]}, {result.milliseconds:.1f} ms{known}){note}"
