"""Write a graph in other precisions, and check each file on the canary before it replaces the old one.

fp32   <graph>.onnx                the original, which the others are made from and compared with
fp16   <graph>.fp16.onnx           for GPUs
int8   <graph>.int8.onnx           for ONNX Runtime on the CPU
       <graph>.int8-tensorrt.onnx  for TensorRT
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from export.fp16 import require_finite, to_fp16
from export.int8 import to_int8
from export.parity import TOLERANCES, Chain, Link
from export.targets import ExportTarget
from mosa_deploy.bundles.graph_index import add_graph_file, graph_file, read_index
from mosa_deploy.bundles.preprocess import Array, Pixels
from mosa_deploy.bundles.store_layout import format_file
from mosa_deploy.bundles.task_graph import ProvedFile
from mosa_deploy.runtimes.names import Precision, Quantisation
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.utils.files import replacing, sha256

FOR_TENSORRT = "int8-tensorrt"

QUANTISED: dict[str, Quantisation] = {"int8": "cpu", FOR_TENSORRT: "tensorrt"}
"""int8 format -> what it is quantised for."""

FORMATS: dict[Precision, tuple[str, ...]] = {"fp32": (), "fp16": ("fp16",), "int8": tuple(QUANTISED)}
"""Precision -> the formats that are written for it, besides the fp32 graph."""

ENGINE_FORMATS: dict[Precision, str] = {"fp32": "fp32", "fp16": "fp16", "int8": FOR_TENSORRT}
"""Precision of an engine -> the format that it is built from."""

ROUNDS = 5


@dataclass(frozen=True)
class Written:
    """A file of an export, and what was measured of it."""

    path: Path
    link: Link | None
    """The comparison with the fp32 graph; None if this machine cannot run the file."""
    accuracy: float | None
    """Accuracy on the validation images of the chain; None if there are none, or this machine cannot run the file."""
    milliseconds: float | None
    """Median time for one image; None if this machine cannot run the file."""

    @property
    def megabytes(self) -> float:
        """The size of the file in MB."""
        return self.path.stat().st_size / 1e6

    def proof(self) -> ProvedFile:
        """What `parity.json` says of the file."""
        return ProvedFile(sha256=sha256(self.path), accuracy=self.accuracy)


def fp32_file(target: ExportTarget, chain: Chain) -> Written:
    """The fp32 graph itself, which the chain has already compared."""
    link = next(link for link in chain.links if link.second == target.stage)
    accuracy = chain.accuracy(chain.outputs[target.stage])
    return Written(target.path, link, accuracy, milliseconds(target.answer_by(open_runner(target.path)), chain.inputs))


def write_formats(
    target: ExportTarget, precisions: Sequence[Precision], chain: Chain, calibration: Pixels | None
) -> Iterator[Written]:
    """Write and check one file after the other.

    Only int8 needs `calibration` (n, H, W, 3). A file of a shared graph serves every task of its backbone: if it exists
    already, it is checked with this task and kept.

    Raises:
        ParityError: a file gives NaN or infinity, or differs too much from the fp32 graph; it is not written.
    """
    for precision in precisions:
        for name in FORMATS[precision]:
            path = format_file(target.path, name)
            if target.shared and path.name in read_index(path.parent).files:
                yield prove(target, graph_file(path.parent, read_index(path.parent), path.name), path, precision, chain)
                continue
            graph = convert(target, name, None if calibration is None else chain.preprocess.normalise(calibration))
            with replacing(path) as aside:
                onnx.save(graph, aside)
                found = prove(target, aside, path, precision, chain)
            if target.shared:
                add_graph_file(path)
            yield found


def convert(target: ExportTarget, name: str, calibration: Array | None) -> onnx.ModelProto:
    """The graph in the format `name`; int8 formats need `calibration` images (n, 3, H, W)."""
    graph = onnx.load(target.path)
    if name == "fp16":
        return to_fp16(graph)
    assert calibration is not None
    return to_int8(graph, target.feeds(calibration), QUANTISED[name])


def prove(target: ExportTarget, file: Path, path: Path, precision: Precision, chain: Chain) -> Written:
    """Compare a file, which will be renamed to `path`, with the fp32 graph that it was made from.

    Raises:
        ParityError: it gives NaN or infinity, or differs too much.
    """
    # One image at a time, because all intermediate values are kept in memory.
    require_finite(path.name, file, (target.feed(image[None]) for image in chain.inputs[: chain.canaries]))
    answer = target.answer_by(open_runner(file))
    logits = chain.answers(path.name, answer)
    link = chain.branch(target.stage, path.name, logits, TOLERANCES[precision])
    return Written(path, link, chain.accuracy(logits), milliseconds(answer, chain.inputs))


def milliseconds(answer: Callable[[Array], Array], images: Array) -> float:
    """The median time of one image over a few runs in milliseconds: a rough value, not a benchmark."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        answer(images[:1])
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))
