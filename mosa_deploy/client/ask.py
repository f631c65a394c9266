"""Ask a running service about images: `mosa ask image.jpg --task digits`."""

from collections.abc import Sequence
from pathlib import Path

from mosa_deploy.client.client import Client
from mosa_deploy.client.schema import Answer, Failure
from mosa_deploy.errors import ServiceError


def ask(images: Sequence[Path], tasks: Sequence[str], address: str, key: str | None = None, top_k: int = 3) -> None:
    """Print a line for each image and task.

    Raises:
        ServiceError: a result has no answer.
    """
    failed: list[Failure] = []
    with Client(address, key) as client:
        for image in images:
            for result in client.classify_by(image, tasks, top_k):
                print(f"{image}: {line(result)}")
                failed += [result] if isinstance(result, Failure) else []
    if failed:
        count = "one result has" if len(failed) == 1 else f"{len(failed)} results have"
        raise ServiceError(failed[0].status, f"{count} no answer, see above")


def line(result: Answer | Failure) -> str:
    """A result in one line."""
    if isinstance(result, Failure):
        return f"{result.task}: no answer ({result.status}): {result.detail}"
    classes = ", ".join(f"{each.label} {each.score:.3f}" for each in result.predictions)
    return f"{result.task}: {classes}   (bundle {result.bundle[:12]}, {result.milliseconds:.1f} ms)"
