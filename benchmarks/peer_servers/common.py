"""What the peers' servers share: their command line, the exported tasks of a store, and the form of an answer.

Every task's folder in the store holds `folded.onnx`, a plain graph with the task's adapter in its weights, so a server
that knows nothing of adapters can serve it. A task that is new in the folder is opened when it is first asked for.
"""

import io
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mosa_deploy.bundles.preprocess import Array, probabilities
from mosa_deploy.bundles.record import RECORD, Record, parse_record
from mosa_deploy.bundles.store_layout import FOLDED, StoreLayout

CONCURRENT = 2
"""How many requests are decoded and run at once; a run takes all cores."""


@dataclass(frozen=True)
class Arguments:
    """What every peer is told."""

    store: Path
    port: int
    quantised: bool
    """Whether to open the int8 files where they are."""
    precision: str
    """`fp32`, or `best` for whatever is fastest on this machine."""
    variant: str
    weights: Path | None
    """The file of the backbone's weights, for a server that loads it itself."""

    @classmethod
    def read(cls) -> "Arguments":
        """Read the command line."""
        parser = ArgumentParser()
        parser.add_argument("--store", type=Path, required=True)
        parser.add_argument("--port", type=int, required=True)
        parser.add_argument("--precision", choices=("fp32", "best"), required=True)
        parser.add_argument("--variant", default="")
        parser.add_argument("--weights", type=Path)
        given = parser.parse_args()
        return cls(given.store, given.port, given.precision == "best", given.precision, given.variant, given.weights)


@dataclass(frozen=True)
class TaskFolder:
    """An exported task."""

    folder: Path
    record: Record

    @classmethod
    def read(cls, store: Path, task: str) -> "TaskFolder":
        """Read a task's record."""
        folder = StoreLayout(store).task(task)
        return cls(folder, parse_record((folder / RECORD).read_bytes(), RECORD))

    def graph(self, quantised: bool) -> Path:
        """The task's own graph, in int8 if that is wanted and was written."""
        int8 = (self.folder / FOLDED).with_suffix(".int8.onnx")
        return int8 if quantised and int8.is_file() else self.folder / FOLDED

    def input(self, image: Image.Image) -> Array:
        """The graph's input (1, 3, H, W)."""
        preprocess = self.record.preprocess
        return preprocess.normalise(preprocess.pixels(image.convert("RGB"))[None])

    def answer(self, logits: NDArray[Any]) -> dict[str, Any]:
        """The likeliest class, in the same form as this project's service answers."""
        row = probabilities(np.asarray(logits, dtype=np.float32).reshape(-1), self.record.temperature)
        best = int(row.argmax())
        return {"predictions": [{"label": self.record.classes[best], "score": float(row[best])}]}


def decode(content: bytes) -> Image.Image:
    """An encoded image."""
    return Image.open(io.BytesIO(content))


def tasks(store: Path) -> list[str]:
    """The tasks to open at the start."""
    return StoreLayout(store).tasks()
