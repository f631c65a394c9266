"""The rows of `benchmarks.gpu` and the two files that hold them."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import machine, provenance

NOT_MEASURED, NOT_INSTALLED = "not measured", "not installed"

LEGEND = """\
Ratios are computed per round; the table has their median and its 95 % bootstrap interval. The first row of a mode and
batch is the reference, and `control` is a copy of it. `merged low-rank` is the plain backbone with an update of rank 16
added to every qkv; `unfolded` has the merged adapters as modules of their own; `shared` gathers each sample's rows from
the banks of 8 tasks. In mode `files` ONNX Runtime's CUDA provider runs the exported files, with the images copied to
the GPU and the answers back. In mode `service` the batch is the number of requests in flight over HTTP."""


@dataclass
class Row:
    """The result of one variant in one mode and batch size. Ratios are to the first variant of the same rounds."""

    mode: str
    batch: int
    variant: str
    rounds: int | None = None
    ms: float | None = None
    images_per_second: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    flop_ratio: float | None = None
    memory_mib: float | None = None
    """Peak memory of a training step, beyond what was allocated before it."""
    memory_ratio: float | None = None
    ready_s: float | None = None
    """Seconds until the first answer; in mode compile, mostly those of compiling."""
    note: str = NOT_MEASURED


def write(out: Path, title: str, head: str, rows: list[Row]) -> None:
    """Write `gpu.csv`, and `gpu.md` with the tables below a heading that says how they were measured."""
    write_csv(out / "gpu.csv", [field.name for field in fields(Row)], map(astuple, rows))
    write_text(out / "gpu.md", f"# {title}\n\n{head}\n\n{tables(rows)}\n")


def tables(rows: list[Row]) -> str:
    """The rows as two Markdown tables, inference and training; memory is measured in training only."""
    training = [row for row in rows if row.mode == "training"]
    inference = [row for row in rows if row.mode != "training"]
    start = ["mode", "batch", "variant", "ms", "images/s", "ratio", "95 %"]
    found = []
    if inference:
        lines = [
            [*_start(row), _text(row.flop_ratio, 4), _text(row.ready_s, 1), _text(row.rounds), row.note]
            for row in inference
        ]
        found.append(table([*start, "FLOP ratio", "ready s", "rounds", ""], lines))
    if training:
        lines = [
            [*_start(row), _text(row.memory_mib, 1), _text(row.memory_ratio, 3), _text(row.rounds), row.note]
            for row in training
        ]
        found.append(table([*start, "MiB", "memory ratio", "rounds", ""], lines))
    return "\n\n".join(found)


def _start(row: Row) -> list[str]:
    interval = "-" if row.ratio_low is None else f"{row.ratio_low:.3f} - {row.ratio_high:.3f}"
    figures = [_text(row.ms, 3), _text(row.images_per_second), _text(row.ratio, 3), interval]
    return [row.mode, str(row.batch), row.variant, *figures]


def _text(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def heading(device: str, commit: str) -> str:
    """Command, machine, commit and versions, the runtimes that are installed, and how to read the tables."""
    made = provenance("benchmarks.gpu", f"{_machine(device)}; bf16", commit)
    return f"{made}\n\n{'; '.join(runtimes())}\n\n{LEGEND}"


def _machine(device: str) -> str:
    """The GPU with its driver, and the processor."""
    if device == "cpu":
        return f"{machine()}, {torch.get_num_threads()} threads"
    driver = "unknown"
    if shutil.which("nvidia-smi") is not None:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0] or driver
    return f"{torch.cuda.get_device_name()}, driver {driver}, CUDA {torch.version.cuda}, {machine()}"


def runtimes() -> list[str]:
    """One text per optional package that says whether it is installed; TensorRT is not timed here."""
    found = [f"peft: {_version('peft') or NOT_INSTALLED}"]
    for name in ("tensorrt", "tensorrt_rtx"):
        found.append(f"{name}: {NOT_INSTALLED if importlib.util.find_spec(name) is None else NOT_MEASURED}")
    return [*found, f"onnxruntime CUDA: {_onnxruntime_cuda() or NOT_INSTALLED}"]


def _version(name: str) -> str | None:
    return importlib.metadata.version(name) if importlib.util.find_spec(name) is not None else None


def _onnxruntime_cuda() -> str | None:
    """The version of an ONNX Runtime with the CUDA provider."""
    try:
        import onnxruntime
    except ImportError:
        return None
    version: str = onnxruntime.__version__
    return version if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else None
