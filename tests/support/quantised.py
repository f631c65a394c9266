"""Stores with int8 files, made without an export."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from export.int8 import to_int8
from export.smooth import smooth
from export.targets import ExportTarget
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.gate import LabelledImage, pack_images
from mosa_deploy.bundles.graph_index import add_graph_file
from mosa_deploy.bundles.preprocess import probabilities
from mosa_deploy.bundles.store_layout import FOLDED, PARITY, VALIDATION, StoreLayout, format_file
from mosa_deploy.bundles.validation import PREFIX
from mosa_deploy.graphs.adapter_weights import layout_of
from mosa_deploy.graphs.fold import fold_bundle, head_parameters
from mosa_deploy.runtimes.shared import SharedTask
from mosa_deploy.utils.files import sha256
from tests.support.tasks import TaskMaker, packed, picture

IMAGES = 32


def write_int8(root: Path, maker: TaskMaker, archive: Archive) -> Path:
    """Smooth and quantise the shared graph of a store on a task of it, add it to the index, and return its path."""
    bundle = archive.bundle()
    graph = StoreLayout(root).backbone(bundle.record.backbone) / "shared.onnx"
    target = ExportTarget("shared", graph, SharedTask.alone(bundle, layout_of(bundle.record)))
    path = format_file(graph, "int8")
    smoothed = smooth(onnx.load(graph), target.feeds(calibration(maker)))
    feeds = target.scaled(bundle, smoothed.exponents).feeds(calibration(maker))
    onnx.save(to_int8(smoothed.model, feeds, "cpu"), path)
    add_graph_file(path, smoothed.exponents)
    return path


def write_own(root: Path, maker: TaskMaker, archive: Archive) -> list[Path]:
    """Write the folded graph of a task in fp32 and in int8, as its export would; without their proof."""
    bundle = archive.bundle()
    graph = StoreLayout(root).task(bundle.record.task) / FOLDED
    onnx.save(fold_bundle(maker.graph, bundle), graph)
    path = format_file(graph, "int8")
    onnx.save(to_int8(onnx.load(graph), ExportTarget("folded", graph).feeds(calibration(maker)), "cpu"), path)
    return [graph, path]


def write_proof(root: Path, archive: Archive, files: Sequence[Path], accuracy: Mapping[str, float]) -> None:
    """Write `parity.json` of a task with its files and their accuracies, by precision."""
    bundle = archive.bundle()
    of_file = {file: accuracy.get("int8" if ".int8." in file.name else "fp32") for file in files}
    proved = {file.name: {"sha256": sha256(file), "accuracy": found} for file, found in of_file.items()}
    text = json.dumps({"bundle": bundle.digest, "files": proved})
    (StoreLayout(root).task(bundle.record.task) / PARITY).write_text(text)


def calibration(maker: TaskMaker) -> "np.typing.NDArray[np.float32]":
    """Images (n, 3, H, W) to calibrate on."""
    return maker.preprocess.normalise(np.stack([maker.preprocess.read(picture(seed)) for seed in range(IMAGES)]))


def undecided(maker: TaskMaker, name: str, steepness: float) -> Archive:
    """A task of two classes that gives each image of its canary 0.5 and 0.5, by a head as steep as that.

    In int8 the features differ by a few hundredths, which a steep head makes another answer of.
    """
    bundle = maker.make(name, 1, classes=2).bundle()
    features = maker.features(bundle).astype(np.float64)
    canary = features[: len(bundle.canary.images)]
    drawn = np.random.default_rng(0).standard_normal((features.shape[1],))
    direction = drawn - np.linalg.pinv(canary) @ (canary @ drawn)
    half = direction * (steepness / np.linalg.norm(direction) / 2)
    weight = np.stack([half, -half]).astype(np.float32)
    tensors = bundle.tensors | head_parameters(maker.graph, weight, np.zeros(2, dtype=np.float32))
    given = Bundle(bundle.record, tensors, bundle.canary)
    found = probabilities(maker.run(given, bundle.canary.images), bundle.record.temperature)
    return packed(Bundle(bundle.record, tensors, Canary(bundle.canary.images, found)))


def on_the_edge(maker: TaskMaker, archive: Archive, count: int) -> list[LabelledImage]:
    """Validation images of which the fp32 graph is right, but hardly, of a task of two classes."""
    drawn = [encode(maker.preprocess.read(picture(seed))) for seed in range(100, 100 + 10 * count)]
    rows = maker.offline(archive, drawn)
    nearest = np.argsort(np.abs(rows[:, 0] - rows[:, 1]))[:count]
    classes = archive.bundle().record.classes
    return [LabelledImage(f"{i:03}.png", classes[int(rows[i].argmax())], drawn[i]) for i in nearest.tolist()]


def write_validation(root: Path, archive: Archive, images: Sequence[LabelledImage]) -> None:
    """Let validation images travel with a task of a store."""
    (StoreLayout(root).task(archive.bundle().record.task) / VALIDATION).write_bytes(pack_images(images, PREFIX))
