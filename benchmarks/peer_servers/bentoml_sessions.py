"""Plain BentoML with one ONNX Runtime session per task: a typed API, as its documentation shows."""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
from PIL import Image

from benchmarks.peer_servers.common import CONCURRENT, Arguments, tasks
from benchmarks.peer_servers.sessions import Sessions

STORE, QUANTISED = "PEERS_STORE", "PEERS_QUANTISED"


@bentoml.service(workers=1, threads=CONCURRENT, traffic={"timeout": 120}, logging={"access": {"enabled": False}})
class Classifier:
    """Opens every session at the start."""

    def __init__(self) -> None:
        store = Path(os.environ[STORE])
        self.sessions = Sessions(store, tasks(store), bool(os.environ.get(QUANTISED)))

    @bentoml.api  # type: ignore[untyped-decorator] # bentoml leaves it without types
    def classify(self, image: Image.Image, task: str) -> dict[str, Any]:
        """Classify one image with a task."""
        return self.sessions.of(task).classify(image)


def main() -> None:
    """Become `bentoml serve`."""
    given = Arguments.read()
    os.environ[STORE] = str(given.store)
    if given.quantised:
        os.environ[QUANTISED] = "1"
    service = "benchmarks.peer_servers.bentoml_sessions:Classifier"
    address = ("--host", "127.0.0.1", "--port", str(given.port))
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", service, *address])


if __name__ == "__main__":
    main()
