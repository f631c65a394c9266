"""Published test accuracies of the benchmark tasks, each with where it was read and how it was measured.

A figure is here only if its source was read. There is none of MoSA itself, and none for `gicd`: `no figure verified`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from training.tasks.fgvc import FGVC
from training.tasks.vtab import VTAB


class Source(NamedTuple):
    """Where figures were read."""

    name: str
    table: str
    protocol: str


V_PETL = "V-PETL Bench (NeurIPS 2024), README of github.com/synbol/Parameter-Efficient-Transfer-Learning-Benchmark"

SOURCES: Mapping[str, Source] = {
    "fgvc": Source(
        V_PETL, "benchmark results on FGVC", "ViT-B/16 pre-trained on ImageNet-21k, VPT's splits, top-1 in percent"
    ),
    "vtab": Source(
        V_PETL,
        "benchmark results on VTAB",
        "ViT-B/16 pre-trained on ImageNet-21k, tuned on all 1,000 images, top-1 in percent",
    ),
}
"""Group -> where its figures are from."""

_FGVC = """
full        87.3 82.7 98.8 89.4 84.5
linear      85.3 75.9 97.9 86.2 51.3
Adapter     87.1 84.3 98.5 89.8 68.6
AdaptFormer 88.4 84.7 99.2 88.2 81.9
BitFit      87.7 85.2 99.2 86.5 81.5
VPT-Deep    88.5 84.2 99.0 90.2 83.6
LoRA        85.6 79.8 98.9 87.6 72.0
SSF         89.5 85.7 99.6 89.6 89.2
"""

_VTAB = """
full        68.9 87.7 64.3 97.2 86.9 87.4 38.8 79.7 95.7 84.2 73.9 56.3 58.6 41.7 65.5 57.5 46.7 25.7 29.1
linear      63.4 85.0 63.2 97.0 86.3 36.6 51.0 78.5 87.5 68.6 74.0 34.3 30.6 33.2 55.4 12.5 20.0  9.6 19.2
Adapter     69.2 90.1 68.0 98.8 89.9 82.8 54.3 84.0 94.9 81.9 75.5 80.9 65.3 48.6 78.3 74.8 48.5 29.9 41.6
AdaptFormer 70.8 91.2 70.5 99.1 90.9 86.6 54.8 83.0 95.8 84.4 76.3 81.9 64.3 49.3 80.3 76.3 45.7 31.7 41.1
BitFit      72.8 87.0 59.2 97.5 85.3 59.9 51.4 78.7 91.6 72.9 69.8 61.5 55.6 32.4 55.9 66.6 40.0 15.7 25.1
VPT-Deep    78.8 90.8 65.8 98.0 88.3 78.1 49.6 81.8 96.1 83.4 68.4 68.5 60.0 46.5 72.8 73.6 47.9 32.9 37.8
LoRA        67.1 91.4 69.4 98.8 90.4 85.3 54.0 84.9 95.3 84.4 73.6 82.9 69.2 49.8 78.5 75.7 47.1 31.0 44.0
SSF         69.0 92.6 75.1 99.4 91.8 90.2 52.9 87.4 95.9 87.4 75.5 75.9 62.3 53.3 80.6 77.3 54.9 29.5 37.9
RepAdapter  72.4 91.6 71.0 99.2 91.4 90.7 55.1 85.3 95.9 84.6 75.9 82.3 68.0 50.4 79.9 80.4 49.2 38.6 41.0
"""


def _parsed(text: str, tasks: list[str]) -> dict[str, dict[str, float]]:
    """Task -> method -> percent, of lines with the figures of all tasks in their order."""
    lines = [line.split() for line in text.split("\n") if line]
    return {name: {method: float(figures[i]) for method, *figures in lines} for i, name in enumerate(tasks)}


PUBLISHED: Mapping[str, Mapping[str, float]] = {
    **_parsed(_FGVC, [task.name for task in FGVC]),
    **_parsed(_VTAB, [task.name for task in VTAB]),
}
"""Task -> method -> percent. Tasks without figures are absent."""
