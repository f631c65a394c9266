"""Ask a running service about images: `mosa ask image.jpg --task digits`."""

from collections.abc import Sequence
from pathlib import Path

from mosa_deploy.bundles.answers import threshold_fault
from mosa_deploy.bundles.image_files import find_images
from mosa_deploy.client.client import Client
from mosa_deploy.client.schema import Answer, Failure
from mosa_deploy.errors import ConfigError, ServiceError
from mosa_deploy.utils.files import printable

OF_THE_IMAGE = (400, 413, 415)
"""Statuses of a request whose image cannot be used; the next one may be fine."""


def ask(
    images: Sequence[Path],
    tasks: Sequence[str],
    address: str,
    key: str | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
) -> None:
    """Print a line for each image and task. `images` are files, and folders of files.

    Raises:
        ConfigError: the threshold is not between 0 and 1.
        DataError: a place does not exist, or there are no images.
        ServiceError: a result has no answer.
    """
    if fault := threshold_fault(threshold):
        raise ConfigError(f"--threshold {fault}")
    files, left_out = find_images(images)
    if left_out:
        print(left_out)
    failed: list[Failure] = []
    with Client(address, key) as client:
        for image in files:
            for result in answers(client, image, tasks, top_k, threshold):
                print(f"{printable(image)}: {line(result)}")
                failed += [result] if isinstance(result, Failure) else []
    if failed:
        count = "one result has" if len(failed) == 1 else f"{len(failed)} results have"
        raise ServiceError(failed[0].status, f"{count} no answer, see above")


def answers(
    client: Client, image: Path, tasks: Sequence[str], top_k: int | None, threshold: float | None
) -> list[Answer | Failure]:
    """The results of an image; one failure per task if the service refuses the image itself.

    Raises:
        ServiceError: the service refuses more than the image.
    """
    try:
        return client.classify_by(image, tasks, top_k, threshold)
    except ServiceError as fault:
        if fault.status not in OF_THE_IMAGE:
            raise
        return [Failure(task=task, status=fault.status, detail=fault.detail) for task in tasks]


def line(result: Answer | Failure) -> str:
    """A result in one line."""
    if isinstance(result, Failure):
        return f"{result.task}: no answer ({result.status}): {result.detail}"
    classes = ", ".join(f"{each.label} {each.score:.3f}" for each in result.predictions) or "no label"
    return f"{result.task}: {classes}   (bundle {result.bundle[:12]}, {result.milliseconds:.1f} ms)"
