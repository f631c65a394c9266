"""The plots of a run: learning curves, confusion matrix and calibration."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import ConfusionMatrixDisplay
from torch import Tensor

from mosa_deploy.utils.files import replacing
from training.label_scores import ECE_BINS
from training.loop import Row
from training.scores import classification_metrics, figure_of, in_words, kept, reliability
from training.tune_options import Select

COLUMNS = 6
"""Tiles beside each other."""

THUMBNAIL = 240
"""The longer side of a tile in pixels."""

LABEL = 40
"""The most characters of a class name beside a confusion matrix; a longer one would take the room of the matrix."""

READABLE = 25
"""With more classes than this, the numbers in a confusion matrix would be too small to read."""


class Tile(NamedTuple):
    """An image with three lines about it."""

    image: Image.Image
    answer: str
    label: str
    name: str


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches, which is written to `path` as PNG at the end of the block."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    yield figure
    with replacing(path) as aside, warnings.catch_warnings():
        # Class names may be in a script that matplotlib's font lacks; the tables have them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(aside, format="png")


def quiet(axes: Axes) -> None:
    """Draw a faint grid, and remove the frame above and at the right."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def axis_name(column: str) -> str:
    """The axis label of the first column of a history: `C`, as in scikit-learn, or the column's own name."""
    return "C" if column == "c" else column


def draw_curves(path: Path, rows: list[Row], title: str, select: Select = "accuracy") -> None:
    """Plot losses and validation accuracy over the epochs, or for the linear probe the accuracy over C.

    With several labels per image, mAP takes its place. `select` is what chose the row that is marked.
    """
    x, figure_name = next(iter(rows[0])), figure_of(rows[0])
    losses = [name for name in ("cross_entropy", "consistency", "validation_loss") if name in rows[0]]
    over = [row[x] for row in rows]
    with drawn(path, 9 if losses else 5, 3.4) as figure:
        axes = figure.subplots(1, 2 if losses else 1, squeeze=False)[0]
        for name in losses:
            label = name.replace("_", " ")
            axes[0].plot(over, [row[name] for row in rows], marker="o", markersize=3, label=label)
        if losses:
            axes[0].set(ylabel="loss (nats)", ylim=(0, None))
            axes[0].legend(frameon=False)
        axes[-1].plot(over, [100 * row[figure_name] for row in rows], marker="o", markersize=3)
        best = rows[kept(rows, select)]
        label = f"kept: {100 * best[figure_name]:.1f} % at {axis_name(x)} {best[x]:g}"
        axes[-1].plot(best[x], 100 * best[figure_name], "o", markersize=9, fillstyle="none", color="C3", label=label)
        axes[-1].legend(frameon=False)
        axes[-1].set(ylabel=f"{in_words(figure_name)} (%)")
        for each in axes:
            quiet(each)
            each.set(xlabel=axis_name(x))
            if x == "epoch":
                each.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            else:
                each.set_xscale("log")
        figure.suptitle(title)


def draw_confusion(path: Path, matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> None:
    """Plot a confusion matrix (true, predicted): numbers of images, coloured by their percentage of the row.

    A class without images is a blank row.
    """
    count = len(classes)
    percent = 100 * matrix / matrix.sum(axis=1, keepdims=True).clip(1)
    # Side of a cell in inches. From 45 to 200 classes the labels shrink from 8 points to 5; below 3 they are left out.
    cell = min(1.0, max(5 / count, min(0.16, 20 / count)))
    size = min(9.0, 72 * cell * 0.7)
    names = [shortened(name, LABEL) for name in classes] if size >= 3 else [""] * count
    widest = max(map(len, names)) * size * 0.6 / 72
    side = cell * count + widest
    with drawn(path, side + 1.7, side + 1.0) as figure:
        axes = figure.subplots()
        # The square root makes a share of 2 % visible.
        norm = PowerNorm(0.5, 0, 100)
        display = ConfusionMatrixDisplay(percent, display_labels=names).plot(
            ax=axes, include_values=count <= READABLE, cmap="Blues", colorbar=False, im_kw={"norm": norm}
        )
        for (i, j), text in np.ndenumerate([] if display.text_ is None else display.text_):
            share = f"{percent[i, j]:.0f} %" if percent[i, j] >= 0.5 else "<1 %"
            shown = f"{matrix[i, j]}\n{share}" if matrix[i, j] else ""
            text.set(text=shown, color="white" if norm(percent[i, j]) > 0.6 else "black")
            text.set_fontsize(min(9.0, 72 * cell * 0.3))
        axes.tick_params(length=0, labelsize=size)
        axes.tick_params("x", rotation=90 if widest > cell else 0)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set_parse_math(False)
        axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
        axes.tick_params(which="minor", length=0)
        axes.grid(which="minor", color="0.88", linewidth=min(0.4, 3 * cell))
        axes.spines[:].set_color("0.88")
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(title, pad=12)
        figure.colorbar(display.im_, ax=axes, label="% of the true class", shrink=0.7, ticks=[0, 10, 25, 50, 75, 100])


def draw_calibration(
    path: Path, before: NDArray[np.float32], after: NDArray[np.float32], labels: Tensor, title: str
) -> None:
    """Reliability diagram (arXiv 1706.04599) of the probabilities (N, K) before and after temperature scaling.

    The upper panel plots each bin's accuracy over its mean confidence; larger dots are bins with more images. The lower
    panel shows the share of images in each bin.
    """
    with drawn(path, 5, 6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, zorder=0)
        for name, given, color in (("before", before, "C1"), ("after", after, "C0")):
            confidence, accuracy, share = reliability(given, labels)
            label = f"{name} the temperature, ECE {classification_metrics(given, labels)['ece']:.3f}"
            upper.plot(confidence, accuracy, color=color, linewidth=1, alpha=0.5, zorder=1)
            upper.scatter(confidence, accuracy, 10 + 150 * share, color=color, alpha=0.8, linewidth=0, label=label)
            weights = np.full(len(given), 1 / len(given))
            lower.hist(given.max(1), ECE_BINS, range=(0, 1), weights=weights, histtype="step", color=color)
        upper.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(-0.02, 1.03))
        legend = upper.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
        for handle in legend.legend_handles:
            handle.set_sizes([40])
        lower.set(xlabel="confidence", ylabel="images", ylim=(0, None))
        lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        quiet(upper)
        quiet(lower)
        figure.suptitle(title)


def draw_tiles(path: Path, tiles: Sequence[Tile], title: str) -> None:
    """Draw images in a grid, each with its lines above and below."""
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    with drawn(path, max(6.0, 2 * columns), 2.6 * rows + 0.5) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes, tile in zip(grid.flat, tiles, strict=False):
            tile.image.thumbnail((THUMBNAIL, THUMBNAIL))
            axes.imshow(np.asarray(tile.image))
            # Offsets in points: a flat panorama would pull together what is placed by its height.
            for text, y, offset, colour in (
                (tile.answer, 1, 14, "C3"),
                (tile.label, 1, 3, "0.2"),
                (tile.name, 0, -11, "0.5"),
            ):
                axes.annotate(
                    shortened(text),
                    (0.5, y),
                    (0, offset),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=colour,
                ).set_parse_math(False)
        figure.suptitle(title, fontsize=10)


def shortened(text: str, most: int = 26) -> str:
    """The text in one line, whose middle is left out if it is longer than a tile is wide."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"
