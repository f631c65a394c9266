"""Write a graph in other precisions, and check each file on the canary before it replaces the old one.

fp32   <graph>.onnx                the original, which the others are made from and compared with
fp16   <graph>.fp16.onnx           for GPUs
int8   <graph>.int8.onnx           for ONNX Runtime on the CPU
       <graph>.int8-tensorrt.onnx  for TensorRT

An int8 file that loses too much accuracy is made again with some products in fp32, and if that is not enough, not
written.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from export.fp16 import require_finite, to_fp16
from export.int8_attempts import attempts
from export.parity import TOLERANCES, Chain, Link
from export.targets import ExportTarget
from mosa_deploy.bundles.graph_index import Exponents, add_graph_file, graph_file, read_index
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.store_layout import format_file
from mosa_deploy.bundles.task_graph import ProvedFile
from mosa_deploy.errors import ParityError
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

FEW = 8
"""Validation images between two looks at whether an int8 file has lost too much."""


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
    fault: str | None = None
    """Why the task should not be answered from it; None if it holds."""
    left_out: str = ""
    """Which products of an int8 file stay in fp32, in words; empty if none."""

    @property
    def megabytes(self) -> float:
        """The size of the file in MB."""
        return self.path.stat().st_size / 1e6

    def proof(self) -> ProvedFile:
        """What `parity.json` says of the file."""
        return ProvedFile(sha256=sha256(self.path), accuracy=self.accuracy, fault=self.fault)


@dataclass(frozen=True)
class Limit:
    """How much accuracy a file may lose."""

    points: float
    """Percentage points."""
    accuracy: float | None
    """That of the fp32 graph; None if there are no labelled images, so that nothing is lost."""
    images: int

    def fault(self, link: Link, accuracy: float | None) -> str | None:
        """Why a file should not take the fp32 graph's place; None if it may."""
        if not link.holds:
            return f"it differs from fp32 by {link.fault}"
        if accuracy is None or self.allows(accuracy):
            return None
        return f"it loses {self.loss(accuracy)}"

    def allows(self, accuracy: float) -> bool:
        """Whether a file may have this accuracy."""
        # The accuracies are shares, so a loss of exactly the limit may come out a little above it.
        return self.accuracy is None or 100 * (self.accuracy - accuracy) <= self.points + 1e-9

    def loss(self, accuracy: float) -> str:
        """How much a file with too little accuracy loses, in words."""
        assert self.accuracy is not None
        return (
            f"{100 * (self.accuracy - accuracy):.2f} points of accuracy on {self.images} validation images, above"
            f" --max-accuracy-loss {self.points:g}"
        )


class LossError(ParityError):
    """An int8 file loses too much, whatever is left out; it is not written."""


def fp32_file(target: ExportTarget, chain: Chain) -> Written:
    """The fp32 graph itself, which the chain has already compared."""
    link = next(link for link in chain.links if link.second == target.stage)
    answer = target.answer_by(open_runner(target.path))
    return Written(target.path, link, chain.accuracy(target.path.name, answer), milliseconds(answer, chain.inputs))


def write_format(target: ExportTarget, precision: Precision, name: str, chain: Chain, limit: Limit) -> Written:
    """Write and check the file of one format; int8 needs the chain's calibration images.

    A file of a shared graph serves every task of its backbone. If it exists already, it is kept, and only measured with
    this task.

    Raises:
        LossError: an int8 file loses too much; it is not written.
        ParityError: a file gives NaN or infinity, or differs too much from the fp32 graph; it is not written.
    """
    path = format_file(target.path, name)
    index = read_index(path.parent) if target.shared else None
    if index is not None and path.name in index.files and path.is_file():
        scaled = target.scaled(chain.bundle, index.scales.get(path.name, {}))
        found = measure(scaled, graph_file(path.parent, index, path.name), path, precision, chain, limit)
        return accept(found, chain) if found.fault is None else warn(found, target, chain)
    exponents: Exponents = {}
    with replacing(path) as aside:
        if name in QUANTISED:
            found, exponents = write_int8(target, aside, path, QUANTISED[name], chain, limit)
        else:
            onnx.save(to_fp16(onnx.load(target.path)), aside)
            check_finite(target, aside, path, chain)
            found = accept(measure(target, aside, path, precision, chain, limit), chain)
    if target.shared:
        add_graph_file(path, exponents)
    return found if found.fault is None else warn(found, target, chain)


def write_int8(
    target: ExportTarget, aside: Path, path: Path, quantisation: Quantisation, chain: Chain, limit: Limit
) -> tuple[Written, Exponents]:
    """Write the first attempt that loses little enough to `aside`, which will be renamed to `path`.

    Returns what was measured of it, and the exponents of the scales for its banks.

    Raises:
        LossError: every attempt loses too much.
        ParityError: the file gives NaN or infinity.
    """
    calibration = chain.preprocess.normalise(chain.samples.images)
    for tried in attempts(target, chain.bundle, calibration, quantisation):
        onnx.save(tried.model, aside)
        found = measure(tried.target, aside, path, "int8", chain, limit, in_full=False)
        if found.fault is None:
            check_finite(tried.target, aside, path, chain)
            return replace(accept(found, chain), left_out=tried.said), tried.exponents
    raise LossError(
        f"{path.name} is not written: even with {len(tried.left_out)} of {tried.products} products in fp32"
        f" {found.fault}; allow more, or leave int8 out of --precision"
    )


def measure(
    target: ExportTarget,
    file: Path,
    path: Path,
    precision: Precision,
    chain: Chain,
    limit: Limit,
    in_full: bool = True,
) -> Written:
    """Compare a file, which will be renamed to `path`, with the fp32 graph that it was made from.

    Unless `in_full`, that ends as soon as the file has lost too much accuracy, with the most that it can have.
    """
    answer = target.answer_by(open_runner(file))
    if in_full:
        accuracy = chain.accuracy(path.name, answer)
    else:
        accuracy = chain.accuracy(path.name, answer, FEW, limit.allows)
        if accuracy is not None and not limit.allows(accuracy):
            return Written(path, None, accuracy, None, f"it loses at least {limit.loss(accuracy)}")
    link = chain.compare(target.stage, path.name, chain.answers(path.name, answer), TOLERANCES[precision])
    return Written(path, link, accuracy, milliseconds(answer, chain.inputs), limit.fault(link, accuracy))


def check_finite(target: ExportTarget, file: Path, path: Path, chain: Chain) -> None:
    """Raises ParityError if a value inside a file, which will be renamed to `path`, is NaN or infinite."""
    # One image at a time, because all intermediate values are kept in memory.
    require_finite(path.name, file, (target.feed(image[None]) for image in chain.inputs[: chain.canaries]))


def accept(found: Written, chain: Chain) -> Written:
    """Add the comparison of a file to the chain.

    Raises:
        ParityError: it differs too much from the fp32 graph.
    """
    assert found.link is not None
    chain.branch(found.link)
    return found


def warn(found: Written, target: ExportTarget, chain: Chain) -> Written:
    """Say that a file is there, but not for this task."""
    print(
        f"warning: '{chain.bundle.record.task}' should be answered from {target.path.name}, not from"
        f" {found.path.name}: {found.fault}",
        file=sys.stderr,
    )
    return found


def milliseconds(answer: Callable[[Array], Array], images: Array) -> float:
    """The median time of one image over a few runs in milliseconds: a rough value, not a benchmark."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        answer(images[:1])
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))
