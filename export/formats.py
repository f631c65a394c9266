"""Write a lane's graph in other precisions, and prove each file on the canary before it takes its place.

fp32   <graph>.onnx                what the others are made of, and proved against
fp16   <graph>.fp16.onnx           for GPUs
int8   <graph>.int8.onnx           for ONNX Runtime on the CPU
       <graph>.int8-tensorrt.onnx  for TensorRT
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from export.fp16 import require_finite, to_fp16
from export.int8 import to_int8
from export.parity import TOLERANCES, Chain, Link
from export.targets import ExportTarget
from mosa_deploy.bundles.preprocess import Array, Pixels
from mosa_deploy.graphs.backbone_graph import add_graph_file, graph_file, read_index
from mosa_deploy.runtimes.names import Precision, Quantisation
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.runner import Runner
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


def fp32_file(lane: ExportTarget, chain: Chain) -> Written:
    """The lane's own graph, which the chain has proved."""
    link = next(link for link in chain.links if link.second == lane.stage)
    accuracy = chain.accuracy(chain.outputs[lane.stage])
    return Written(lane.path, link, accuracy, milliseconds(lane, OnnxRunner(lane.path), chain.inputs))


def write_formats(
    lane: ExportTarget, precisions: Sequence[Precision], chain: Chain, calibration: Pixels | None
) -> Iterator[Written]:
    """Write and prove one file after the other.

    `calibration` (n, H, W, 3) is needed for int8 alone. A shared graph's file that is there already serves every task
    of its backbone: it is proved for this one and stays.

    Raises:
        ParityError: a file is not finite, or too far from the fp32 graph; it is not written.
    """
    for precision in precisions:
        for name in FORMATS[precision]:
            path = format_file(lane.path, name)
            if lane.shared and path.name in read_index(path.parent).files:
                yield prove(lane, graph_file(path.parent, read_index(path.parent), path.name), path, precision, chain)
                continue
            graph = convert(lane, name, None if calibration is None else chain.preprocess.normalise(calibration))
            with replacing(path) as aside:
                onnx.save(graph, aside)
                found = prove(lane, aside, path, precision, chain)
            if lane.shared:
                add_graph_file(path)
            yield found


def convert(lane: ExportTarget, name: str, calibration: Array | None) -> onnx.ModelProto:
    """The lane's graph in the format of that name."""
    graph = onnx.load(lane.path)
    if name == "fp16":
        return to_fp16(graph)
    assert calibration is not None
    return to_int8(graph, lane.feeds(calibration), QUANTISED[name])


def prove(lane: ExportTarget, file: Path, path: Path, precision: Precision, chain: Chain) -> Written:
    """Compare a file, which is at `path` in the end, with the fp32 graph of its lane."""
    # An image at a time: all the values of one fit into memory.
    require_finite(path.name, file, (lane.feed(image[None]) for image in chain.inputs[: chain.canaries]))
    runner = OnnxRunner(file)
    logits = lane.logits(runner, chain.inputs)
    link = chain.branch(lane.stage, path.name, logits, TOLERANCES[precision])
    return Written(path, link, chain.accuracy(logits), milliseconds(lane, runner, chain.inputs))


def milliseconds(lane: ExportTarget, runner: Runner, images: Array) -> float:
    """The median time of one image over a few runs, by a runner that is bound: an impression, not a measurement."""
    if lane.bound:
        runner.bind(lane.bound)
    inputs, times = lane.inputs(images[:1]), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        runner.run(*inputs)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))
