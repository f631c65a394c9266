"""Measure speed and accuracy of lower precisions: `python -m benchmarks.precision --runs runs/digits runs/ucmerced`.

The first table has accuracy, calibration error and size of every ONNX file of each run, on its test set. The second
has the latency of fp32, fp16 and int8 on a larger backbone (`export.timing`), with random weights, since time depends
on shapes alone. The third has the time to build its engines, if TensorRT-RTX is installed, which needs no GPU to build.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tyro

from export.engines import BankLimits, Request, TensorRtRtx
from export.export import export
from export.formats import ENGINE_FORMATS, FORMATS
from export.fp16 import to_fp16
from export.int8 import to_int8
from export.options import ExportConfig, FileOptions
from export.timing import Answer, time_sessions
from export.trace import STAND_IN_CLASSES, trace_plain
from mosa_deploy.backbones.foldable import image_size
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.record import read_record
from mosa_deploy.bundles.store_layout import FOLDED, StoreLayout, format_file
from mosa_deploy.errors import command
from mosa_deploy.graphs.adapter_weights import layout_of
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.tensorrt_library import installed
from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.intervals import ratio_interval
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.evaluate import evaluate, image_settings
from training.options import EvaluateConfig

TIMED = ("fp32", "control", "fp16", "int8")
"""`control` is the fp32 file again: it shows the noise."""

CALIBRATION = 8
"""Number of noise images on which the timed int8 graph is calibrated."""

CAPABILITY = "sm86"


@dataclass(frozen=True)
class Config:
    """Measure the accuracy of every precision on tuned tasks, and its latency on a larger backbone."""

    runs: tuple[Path, ...] = (Path("runs/digits"),)
    """Folders of runs. Give none to measure latency only."""
    backbone: str = "vit_base_patch16_224"
    """Name of the timm model that is timed, with random weights."""
    batch_sizes: tuple[int, ...] = (1, 8)
    seconds: float = 120.0
    """Seconds of timing per batch size. 0 skips the timing."""
    sessions: int = 5
    """How many times every file is opened again."""
    threads: int = 0
    """Number of threads for one inference. 0 uses all cores."""
    out: Path = Path("benchmarks/results/precision")


@dataclass(frozen=True)
class Quality:
    """The metrics of one file of one task on its test set."""

    task: str
    file: str
    megabytes: float
    accuracy: float
    change: float
    """Accuracy minus that of the lane's fp32 file, in percentage points."""
    nll: float
    ece: float


@dataclass(frozen=True)
class Speed:
    """The latency of one precision at one batch size, with ONNX Runtime on the CPU."""

    precision: str
    batch: int
    median_ms: float
    speedup: float
    """Time of fp32 over the time of this precision."""
    low: float
    high: float
    rounds: int
    megabytes: float


@dataclass(frozen=True)
class Built:
    """One engine of the larger backbone, built on this machine's CPU and not run."""

    library: str
    precision: str
    capability: str
    seconds: float
    megabytes: float


def qualities(run: Path, root: Path) -> Iterator[Quality]:
    """Export a run in every precision and evaluate each file."""
    task = export(ExportConfig(bundle=run, out=root, files=FileOptions(precision="fp32,fp16,int8")))
    record = read_record(task)
    images = image_settings(EvaluateConfig(), run, record.dataset)
    given: dict[str, Any] = {"data_dir": images.data_dir, "split": images.split, "labels": images.labels}
    graphs = (task / FOLDED, None), (StoreLayout(root).backbone(record.backbone) / layout_of(record).file, task)
    for graph, bundle in graphs:
        base = None
        for name in ("fp32", *(name for names in FORMATS.values() for name in names)):
            path = format_file(graph, name)
            found = evaluate(EvaluateConfig(onnx=path, bundle=bundle, **given))
            base = found["accuracy"] if base is None else base
            change = 100 * (found["accuracy"] - base)
            size = path.stat().st_size / 1e6
            yield Quality(record.task, path.name, size, found["accuracy"], change, found["nll"], found["ece"])


def write_files(config: Config, folder: Path) -> dict[str, Path]:
    """Write the backbone's plain graph in every format; returns format -> path."""
    model = load_backbone(config.backbone, Weights("random"), STAND_IN_CLASSES)
    randomise(model)
    height, width = image_size(model)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((CALIBRATION, 3, height, width), dtype=np.float32)
    graph = trace_plain(model, sha256="").model
    del model
    files = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8", "int8-tensorrt")}
    onnx.save(graph, files["fp32"])
    onnx.save(to_fp16(graph), files["fp16"])
    onnx.save(to_int8(graph, ({"images": image[None]} for image in images), "cpu"), files["int8"])
    onnx.save(to_int8(graph, ({"images": image[None]} for image in images), "tensorrt"), files["int8-tensorrt"])
    return files


def speeds(config: Config, files: dict[str, Path]) -> list[Speed]:
    """Time the files on the CPU."""
    files = files | {"control": files["fp32"]}
    shape = [dim.dim_value for dim in onnx.load(files["fp32"]).graph.input[0].type.tensor_type.shape.dim[1:]]
    rng = np.random.default_rng(0)

    def opener(path: Path) -> Callable[[], Answer]:
        return lambda: OnnxRunner(path, threads=config.threads, spinning=False).run

    batches = [rng.standard_normal((size, *shape), dtype=np.float32) for size in config.batch_sizes]
    opens = {name: opener(files[name]) for name in TIMED}
    rows = []
    for size, times in zip(
        config.batch_sizes, time_sessions(opens, batches, config.seconds, config.sessions, config.backbone), strict=True
    ):
        for name in TIMED:
            own = np.concatenate([opened[name] for opened in times])
            ratios = [float(np.median(opened["fp32"] / opened[name])) for opened in times]
            speedup = (1.0, 1.0, 1.0) if name == "fp32" else ratio_interval(ratios)
            rows.append(Speed(name, size, float(np.median(own)), *speedup, len(own), files[name].stat().st_size / 1e6))
    return rows


def builds(config: Config, files: dict[str, Path]) -> list[Built]:
    """Build an engine of each precision, with a profile for each batch size."""
    backend, rows = TensorRtRtx(), []
    for precision, name in ENGINE_FORMATS.items():
        request = Request(files[name], precision, config.batch_sizes, CAPABILITY, BankLimits())
        start = time.perf_counter()
        engine = backend.build(request)
        seconds, library = time.perf_counter() - start, f"{backend.library} {backend.version}"
        rows.append(Built(library, precision, CAPABILITY, seconds, len(engine) / 1e6))
    return rows


def quality_table(rows: list[Quality]) -> str:
    """The rows as a Markdown table."""
    lines = [
        (
            *(row.task, row.file, f"{row.megabytes:.1f}", f"{row.accuracy:.4f}"),
            *(f"{row.change:+.2f}", f"{row.nll:.4f}", f"{row.ece:.4f}"),
        )
        for row in rows
    ]
    return table(("task", "file", "MB", "accuracy", "change, points", "NLL", "ECE"), lines)


def speed_table(rows: list[Speed]) -> str:
    """The rows as a Markdown table."""
    lines = [
        (
            *(row.precision, row.batch, f"{row.median_ms:.1f}", f"{row.speedup:.3f}"),
            *(f"{row.low:.3f} - {row.high:.3f}", row.rounds, f"{row.megabytes:.1f}"),
        )
        for row in rows
    ]
    return table(("precision", "batch", "median ms", "faster than fp32", "95 % interval", "rounds", "MB"), lines)


def build_table(rows: list[Built]) -> str:
    """The rows as a Markdown table."""
    lines = [(row.library, row.precision, row.capability, f"{row.seconds:.1f}", f"{row.megabytes:.1f}") for row in rows]
    return table(("library", "precision", "built for", "seconds", "MB"), lines)


def write_rows(path: Path, rows: list[Quality] | list[Speed] | list[Built]) -> None:
    """Write the rows as a CSV file."""
    write_csv(path, list(asdict(rows[0])), map(astuple, rows))


@command
def main() -> None:
    """Measure, print and write the tables."""
    config = tyro.cli(Config, prog="python -m benchmarks.precision", config=(tyro.conf.FlagCreatePairsOff,))
    parts = ["# Precisions", provenance("benchmarks.precision")]
    with tempfile.TemporaryDirectory() as scratch:
        if config.runs:
            quality = [row for run in config.runs for row in qualities(run, Path(scratch) / "store")]
            write_rows(config.out / "quality.csv", quality)
            parts.append(f"On the test sets, by ONNX Runtime on the CPU:\n\n{quality_table(quality)}")
        if config.seconds:
            files = write_files(config, Path(scratch))
            speed = speeds(config, files)
            write_rows(config.out / "latency.csv", speed)
            words = (
                f"{config.backbone}, random weights, ONNX Runtime on the CPU; every file opened {config.sessions}"
                " times, ratios round by round, Student's interval over the openings. `control` is the fp32 file again."
            )
            parts.append(f"{words}\n\n{speed_table(speed)}")
            if "tensorrt_rtx" in installed():
                built = builds(config, files)
                write_rows(config.out / "builds.csv", built)
                parts.append(f"Engines of the same graph, built on the CPU:\n\n{build_table(built)}")
    parts.append("On an NVIDIA GPU: not measured.")
    text = "\n\n".join(parts)
    write_text(config.out / "precision.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
