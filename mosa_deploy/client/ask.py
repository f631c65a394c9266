"""Ask a running service about images: `python -m mosa_deploy.client.ask image.jpg --task digits`."""

import argparse
import os
from pathlib import Path

from mosa_deploy.client.client import Client
from mosa_deploy.client.schema import Answer, Failure
from mosa_deploy.errors import ServiceError, command

ADDRESS = "http://localhost:3000"


@command
def main() -> None:
    """The command line; a result without an answer ends with exit code 2."""
    arguments = parser().parse_args()
    failed: list[Failure] = []
    with Client(arguments.address, arguments.key) as client:
        for image in arguments.images:
            for result in client.classify_by(image, arguments.task, arguments.top_k):
                print(f"{image}: {line(result)}")
                failed += [result] if isinstance(result, Failure) else []
    if failed:
        count = "one result has" if len(failed) == 1 else f"{len(failed)} results have"
        raise ServiceError(failed[0].status, f"{count} no answer, see above")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m mosa_deploy.client.ask", description="Ask a running service about images."
    )
    made.add_argument("images", type=Path, nargs="+", metavar="image")
    made.add_argument("--task", required=True, action="append", help="may be given several times")
    address = os.environ.get("MOSA_ADDRESS") or ADDRESS
    made.add_argument("--address", default=address, help=f"MOSA_ADDRESS or {ADDRESS} if not given")
    made.add_argument("--key", help="an API key; MOSA_KEY if not given")
    made.add_argument("--top-k", type=int, default=3, help="how many classes to show")
    return made


def line(result: Answer | Failure) -> str:
    """A result in one line."""
    if isinstance(result, Failure):
        return f"{result.task}: no answer ({result.status}): {result.detail}"
    classes = ", ".join(f"{each.label} {each.score:.3f}" for each in result.predictions)
    return f"{result.task}: {classes}   (bundle {result.bundle[:12]}, {result.milliseconds:.1f} ms)"


if __name__ == "__main__":
    main()
