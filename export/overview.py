"""Every file that an export wrote, side by side."""

from collections.abc import Sequence
from pathlib import Path

from export.formats import Written

COLUMNS = ("file", "MB", "parity", "cosine", "top-1 agreement", "ms, one image")

ACCURACY = "accuracy and calibration error of each: python -m training.evaluate --onnx FILE"
SHARED_TOO = ", and --bundle {folder} for a shared one"
DEFERRED = "parity: deferred for {files}: no GPU here runs it; the runner proves the canary before it serves"


def overview(written: Sequence[Written], folder: Path) -> str:
    """A line a file: size, the largest error on the canary and the cosine to the fp32 graph, an impression of speed."""
    rows = [COLUMNS, *(line(file) for file in written)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    deferred = [file.path.name for file in written if file.link is None]
    lines += [DEFERRED.format(files=", ".join(deferred))] if deferred else []
    return "\n".join([*lines, ACCURACY + SHARED_TOO.format(folder=folder)])


def line(file: Written) -> tuple[str, ...]:
    """The cells of one file."""
    size = f"{file.megabytes:.1f}"
    time = "not measured" if file.milliseconds is None else f"{file.milliseconds:.1f}"
    if file.link is None:
        return file.path.name, size, "deferred", "", "", time
    link = file.link
    return (file.path.name, size, f"{link.max_error:.1e}", f"{link.cosine:.7f}", f"{link.top1_agreement:.3f}", time)
