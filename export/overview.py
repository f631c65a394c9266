"""The table of all files that an export wrote."""

from collections.abc import Sequence
from pathlib import Path

from export.formats import Written

COLUMNS = ("file", "MB", "parity", "cosine", "top-1 agreement", "accuracy", "ms, one image")

VALIDATION = "accuracy: on {images} validation images; "
TEST = "the test set: mosa evaluate --onnx FILE"
SHARED_TOO = ", and --bundle {folder} for a shared one"
DEFERRED = "parity: deferred for {files}: no GPU here runs it; the runner proves the canary before it serves"


def overview(written: Sequence[Written], folder: Path, images: int) -> str:
    """One line per file: size, largest error and cosine to the fp32 graph, accuracy, and a rough time per image.

    `images` is the number of validation images on which the accuracy was measured.
    """
    rows = [COLUMNS, *(line(file) for file in written)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{file.path.name}: {file.left_out}" for file in written if file.left_out]
    deferred = [file.path.name for file in written if file.link is None]
    lines += [DEFERRED.format(files=", ".join(deferred))] if deferred else []
    whose = VALIDATION.format(images=images) if images else ""
    return "\n".join([*lines, whose + TEST + SHARED_TOO.format(folder=folder)])


def line(file: Written) -> tuple[str, ...]:
    """The cells of one file."""
    size = f"{file.megabytes:.1f}"
    accuracy = "not measured" if file.accuracy is None else f"{file.accuracy:.3f}"
    time = "not measured" if file.milliseconds is None else f"{file.milliseconds:.1f}"
    if file.link is None:
        return file.path.name, size, "deferred", "", "", accuracy, time
    link = file.link
    shown = f"{link.max_error:.1e}", f"{link.cosine:.7f}", f"{link.top1_agreement:.3f}"
    return file.path.name, size, *shown, accuracy, time
