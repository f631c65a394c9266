"""The plot of latency ratios."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from mosa_deploy.files import replacing


def draw_ratios(path: Path, title: str, rows: Sequence[tuple[str, float, float, float, float]]) -> None:
    """One point a row (label, ratio, low, high, predicted ratio), with its interval and the prediction."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.45 * len(rows) + 1.4), layout="constrained")
    for y, (_, ratio, low, high, predicted) in enumerate(rows):
        axis.errorbar(ratio, y, xerr=[[ratio - low], [high - ratio]], fmt="o", color="C0", capsize=3)
        axis.plot(predicted, y, "|", color="C1", markersize=14)
    axis.plot([], [], "|", color="C1", markersize=14, label="FLOP ratio")
    axis.errorbar([], [], xerr=[], fmt="o", color="C0", capsize=3, label="measured, 95 % interval")
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set(
        yticks=range(len(rows)), yticklabels=[row[0] for row in rows], xlabel="latency / plain backbone's", title=title
    )
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize="small")
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
    plt.close(figure)
