"""Ask a running service: `python -m serving.ask image.jpg --task digits`."""

import argparse
import os
from pathlib import Path

from mosa_deploy.client.client import Answer, Client, Failure
from mosa_deploy.errors import DataError, ServiceError, command

ADDRESS = "http://localhost:3000"


@command
def main() -> None:
    """The command line; a result without an answer ends with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m serving.ask", description="Ask a running service about images.")
    parser.add_argument("images", type=Path, nargs="+", metavar="image")
    parser.add_argument("--task", required=True, action="append", help="may be given several times")
    parser.add_argument("--address", default=os.environ.get("MOSA_ADDRESS", ADDRESS), help=f"{ADDRESS} if not given")
    parser.add_argument("--key", help="an API key; MOSA_KEY if not given")
    parser.add_argument("--top-k", type=int, default=3)
    arguments = parser.parse_args()
    failed: list[Failure] = []
    with Client(arguments.address, arguments.key) as client:
        for image in arguments.images:
            content = _read(image)
            for result in client.classify_by(content, arguments.task, arguments.top_k):
                print(f"{image}: {line(result)}")
                failed += [result] if isinstance(result, Failure) else []
    if failed:
        raise ServiceError(failed[0].status, f"{len(failed)} of the questions have no answer, see above")


def line(result: Answer | Failure) -> str:
    """A result in one line."""
    if isinstance(result, Failure):
        return f"{result.task}: no answer ({result.status}): {result.detail}"
    classes = ", ".join(f"{each.label} {each.score:.3f}" for each in result.predictions)
    return f"{result.task}: {classes}   (bundle {result.bundle[:12]}, {result.milliseconds:.1f} ms)"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


if __name__ == "__main__":
    main()
