"""Measure int8 on a backbone with outlier channels: `python -m benchmarks.outliers --runs runs/a --backbone-weights F`.

Each run was tuned on the weights in F. In copies of them one channel of every `norm2` is 200 and 20,000 times as large.
What reads it, `fc1` and the adapters, is divided by the same, so that the fp32 graph stays the same function. Each copy
is exported, and its files are evaluated on the test set of the run. `int8, every product as it is` is what the export
would write without smoothing and without leaving out layers.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tyro
from numpy.typing import NDArray
from safetensors.torch import save_file

from export.export import export
from export.formats import LossError
from export.int8 import constant_products, to_int8
from export.left_out import quantised_products
from export.options import ExportConfig, FileOptions
from export.targets import ExportTarget
from mosa_deploy.adapters.restore import describe_backbone, load_recorded
from mosa_deploy.backbones.foldable import Transformer, blocks_of, feed_forward
from mosa_deploy.backbones.load import Weights
from mosa_deploy.bundles.bundle import Bundle, Tensors
from mosa_deploy.bundles.calibration import Samples, read_samples, write_samples
from mosa_deploy.bundles.record import read_record
from mosa_deploy.bundles.store_layout import FOLDED, StoreLayout, format_file
from mosa_deploy.errors import DataError, command
from mosa_deploy.graphs.adapter_weights import layout_of
from mosa_deploy.runtimes.shared import SharedTask
from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.evaluate import image_settings, measure
from training.options import EvaluateConfig
from training.subjects import choose_subject

CHANNEL = 7

AS_IT_IS = "int8, every product as it is"


@dataclass(frozen=True)
class Config:
    """Measure the accuracy of int8 on weights with outlier channels."""

    runs: tuple[Path, ...]
    """Folders of runs that were tuned on --backbone-weights."""
    backbone_weights: Path
    """File of the backbone's weights."""
    factors: tuple[float, ...] = (1, 200, 20_000)
    """How many times as large the channel is made; 1 leaves it as it is."""
    data_dir: Path | None = None
    """The images of the runs, if they are no longer where they were tuned from."""
    max_accuracy_loss: float = 0.3
    """That of the export."""
    out: Path = Path("benchmarks/results/outliers")


@dataclass(frozen=True)
class Row:
    """One file of one task."""

    task: str
    method: str
    factor: float
    file: str
    products: str
    """Products with a constant weight in int8, of how many."""
    images: int
    accuracy: float | None
    """On the test set; None if the file was not written."""
    change: float | None
    """Accuracy minus that of the lane's fp32 file, in percentage points."""
    agreement: float | None
    """Share of test images that get the same class as by the lane's fp32 file."""


def with_outlier(model: Transformer, factor: float) -> None:
    """Make one channel of every norm2 larger, in place, and what fc1 reads of it smaller."""
    for block in blocks_of(model).values():
        norm, fc1, *_ = feed_forward(block)
        for tensor in (norm.weight, norm.bias):
            tensor.data[CHANNEL] *= factor
        fc1.weight.data[:, CHANNEL] /= factor


def tensors_with_outlier(tensors: Tensors, factor: float) -> Tensors:
    """The same for the norms of parallel adapters, which have the affine of a norm2 of their own."""
    changed: dict[str, NDArray[np.generic]] = {}
    for name, value in tensors.items():
        own: NDArray[Any] = value.copy()
        if name.endswith((".adapter.norm.weight", ".adapter.norm.bias")):
            own[CHANNEL] *= factor
        elif name.endswith((".adapter.down.weight", ".adapter.down.base")):
            own[:, CHANNEL] /= factor
        changed[name] = own
    return changed


def copied_run(run: Path, weights: Path, factor: float, folder: Path) -> tuple[Path, Path, Samples]:
    """A copy of a run on weights with an outlier: the copy, the file of the weights, and the calibration images."""
    bundle = Bundle.load(run)
    record = bundle.record
    samples = read_samples(run, record.preprocess.size)
    if samples is None:
        raise DataError(f"{run} has no calibration images: tune it again")
    model = load_recorded(record, Weights("file", weights))
    with_outlier(model, factor)
    path = folder / f"{factor:g}.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    backbone = describe_backbone(record.backbone.name, "file", model)
    copy = folder / f"{run.name}-{factor:g}"
    moved = record.model_copy(update={"backbone": backbone})
    Bundle(moved, tensors_with_outlier(bundle.tensors, factor), bundle.canary).save(copy)
    write_samples(copy, samples)
    return copy, path, samples


def rows(run: Path, config: Config, factor: float, scratch: Path) -> Iterator[Row]:
    """Export a copy of the run and evaluate the files of both lanes."""
    copy, weights, samples = copied_run(run, config.backbone_weights, factor, scratch)
    store = scratch / f"store-{run.name}-{factor:g}"
    options = FileOptions(precision="fp32,int8", max_accuracy_loss=config.max_accuracy_loss)
    try:
        export(ExportConfig(bundle=copy, out=store, backbone_weights=weights, files=options))
    except LossError as loss:
        print(loss)
    bundle = Bundle.load(copy)
    record, layout, task = bundle.record, layout_of(bundle.record), StoreLayout(store).task(bundle.record.task)
    shared = StoreLayout(store).backbone(record.backbone) / layout.file
    targets = ExportTarget("folded", task / FOLDED), ExportTarget("shared", shared, SharedTask.alone(bundle, layout))
    for target in targets:
        plain, graph = format_file(target.path, "as-it-is"), onnx.load(target.path)
        feeds = target.feeds(record.preprocess.normalise(samples.images))
        onnx.save(to_int8(graph, feeds, "cpu"), plain)
        fp32 = None
        files = {"fp32": target.path, AS_IT_IS: plain, "int8": format_file(target.path, "int8")}
        for name, path in files.items():
            given = f"{target.name}, {name}"
            if not path.is_file():
                yield Row(record.task, record.method, factor, given, "not written", 0, None, None, None)
                continue
            labels, classes = answers(path, task if target.shared else None, run, config)
            right = float((labels == classes).mean())
            fp32 = (right, classes) if fp32 is None else fp32
            count = f"{len(quantised_products(onnx.load(path)))} of {len(constant_products(graph))}"
            same = float((classes == fp32[1]).mean())
            change = 100 * (right - fp32[0])
            yield Row(record.task, record.method, factor, given, count, len(labels), right, change, same)


def answers(path: Path, task: Path | None, run: Path, config: Config) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The labels of the run's test images, and the classes that a file names."""
    images = image_settings(EvaluateConfig(data_dir=config.data_dir), run, read_record(run).dataset)
    given: dict[str, Any] = {"data_dir": images.data_dir, "split": images.split, "labels": images.labels}
    options = EvaluateConfig(onnx=path, bundle=task, **given)
    found = measure(options, choose_subject(options)[0], None)
    return found.test.labels.numpy(), found.probabilities.argmax(1)


def row_table(found: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        (
            *(row.task, row.method, f"{row.factor:g}", row.file, row.products, row.images or ""),
            "" if row.accuracy is None else f"{row.accuracy:.4f}",
            "" if row.change is None else f"{row.change:+.2f}",
            "" if row.agreement is None else f"{row.agreement:.3f}",
        )
        for row in found
    ]
    columns = ("task", "method", "outlier", "file", "products in int8", "images", "accuracy", "change, points", "same")
    return table(columns, lines)


@command
def main() -> None:
    """Measure, print and write the table."""
    config = tyro.cli(Config, prog="python -m benchmarks.outliers", config=(tyro.conf.FlagCreatePairsOff,))
    found: list[Row] = []
    for run in config.runs:
        for factor in config.factors:
            with tempfile.TemporaryDirectory() as scratch:
                found += rows(run, config, factor, Path(scratch))
            write_csv(config.out / "outliers.csv", list(asdict(found[0])), map(astuple, found))
            words = (
                "On the test set of each run, ONNX Runtime on the CPU; `same` is the share of equal classes as in fp32."
            )
            parts = ["# int8 and outlier channels", provenance("benchmarks.outliers"), words, row_table(found)]
            write_text(config.out / "outliers.md", "\n\n".join(parts) + "\n")
    print(row_table(found))


if __name__ == "__main__":
    main()
