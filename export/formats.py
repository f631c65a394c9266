"""Write a graph in other precisions, and prove each file on the canary before it takes its place.

fp32   <graph>.onnx                what the others are made of, and proved against
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
from mosa_deploy.runtimes.names import Precision, Quantisation
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.utils.files import replacing

FOR_TENSORRT = "int8-tensorrt"

QUANTISED: dict[str, Quantisation] = {"int8": "cpu", FOR_TENSORRT: "tensorrt"}
"""The formats in int8, by what they are quantised for."""

FORMATS: dict[Precision, tuple[str, ...]] = {"fp32": (), "fp16": ("fp16",), "int8": tuple(QUANTISED)}
"""The formats that are written for a precision, beside the fp32 graph."""

ENGINE_FORMATS: dict[Precision, str] = {"fp32": "fp32", "fp16": "fp16", "int8": FOR_TENSORRT}
"""The format that an engine of a precision is built from."""

ROUNDS = 5


@dataclass(frozen=True)
class Written:
    """One file with what the export knows of it."""

    path: Path
    link: Link | None
    """None where nothing here could run it."""
    accuracy: float | None
    """On the validation images of the chain; None if there are none, or nothing could run it."""
    milliseconds: float | None
    """Median for one image, on the CPU."""

    @property
    def megabytes(self) -> float:
        """The size of the file."""
        return self.path.stat().st_size / 1e6


def format_file(graph: Path, name: str) -> Path:
    """The path of a graph in another format."""
    return graph if name == "fp32" else graph.with_suffix(f".{name}.onnx")


def fp32_file(target: ExportTarget, chain: Chain) -> Written:
    """The fp32 graph itself, which the chain has proved."""
    link = next(link for link in chain.links if link.second == target.stage)
    accuracy = chain.accuracy(chain.outputs[target.stage])
    return Written(target.path, link, accuracy, milliseconds(target.answer_by(open_runner(target.path)), chain.inputs))


def write_formats(
    target: ExportTarget, precisions: Sequence[Precision], chain: Chain, calibration: Pixels | None
) -> Iterator[Written]:
    """Write and prove one file after the other.

    Only int8 needs `calibration` (n, H, W, 3). A shared graph's file that exists already serves every task of its
    backbone: it is proved for this one and stays.

    Raises:
        ParityError: a file is not finite, or too far from the fp32 graph; it is not written.
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
    """The graph in the format of that name."""
    graph = onnx.load(target.path)
    if name == "fp16":
        return to_fp16(graph)
    assert calibration is not None
    return to_int8(graph, target.feeds(calibration), QUANTISED[name])


def prove(target: ExportTarget, file: Path, path: Path, precision: Precision, chain: Chain) -> Written:
    """Compare a file, which will be renamed to `path`, with the fp32 graph that it was made from."""
    # One image at a time: all its values must fit into memory.
    require_finite(path.name, file, (target.feed(image[None]) for image in chain.inputs[: chain.canaries]))
    answer = target.answer_by(open_runner(file))
    logits = answer(chain.inputs)
    link = chain.branch(target.stage, path.name, logits, TOLERANCES[precision])
    return Written(path, link, chain.accuracy(logits), milliseconds(answer, chain.inputs))


def milliseconds(answer: Callable[[Array], Array], images: Array) -> float:
    """The median time of one image over a few runs: an impression, not a measurement."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        answer(images[:1])
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))
