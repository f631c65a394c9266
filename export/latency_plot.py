"""The plot of latency ratios."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from export.timing import Row
from mosa_deploy.utils.files import replacing


def draw_ratios(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Plot ratios with intervals: a panel for each runner and precision, one row per variant, a colour per batch size.

    The rows of the plain backbone, which are 1, are left out.
    """
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row.variant != "plain"]
    panels, batches = list(dict.fromkeys(map(panel, rows))), list(dict.fromkeys(row.batch for row in rows))
    labels = list(dict.fromkeys(label(row) for row in shown))
    figure, axes = plt.subplots(
        1,
        len(panels),
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(3 + 3 * len(panels), 1.6 + 0.45 * len(labels)),
        layout="constrained",
    )
    for axis, name in zip(axes[0], panels, strict=True):
        for row in shown:
            if panel(row) != name:
                continue
            k = batches.index(row.batch)
            y = labels.index(label(row)) + 0.5 * ((k + 0.5) / len(batches) - 0.5)
            error = [[row.ratio - row.ratio_low], [row.ratio_high - row.ratio]]
            axis.errorbar(row.ratio, y, xerr=error, fmt="o", color=f"C{k}", markersize=4, capsize=3)
            axis.plot(row.flop_ratio, labels.index(label(row)), "|", color="grey", markersize=14)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set(yticks=range(len(labels)), yticklabels=labels, title=name, xlabel="latency / plain's")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].invert_yaxis()
    for k, batch in enumerate(batches):
        axes[0, 0].errorbar([], [], xerr=[], fmt="o", color=f"C{k}", markersize=4, capsize=3, label=f"batch {batch}")
    axes[0, 0].plot([], [], "|", color="grey", markersize=14, label="FLOP ratio")
    figure.legend(loc="outside lower center", ncols=len(batches) + 1, frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium", wrap=True)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
    plt.close(figure)


def panel(row: Row) -> str:
    """What the row's graph was run by, and in which precision."""
    return f"{row.runner}, {row.precision}"


def label(row: Row) -> str:
    """The variant, with r if it has an adapter."""
    return f"{row.variant}, r = {row.bottleneck}" if row.bottleneck else row.variant
