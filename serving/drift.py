"""Drift: whether the images of a task still look like those on which it was validated.

Every image that is answered in the shared lane has a score, see `mosa_deploy.bundles.feature_statistics`. On validation
images the scores are spread evenly from 0 to 1. Over windows of N images the largest distance of their distribution
from that one, the Kolmogorov-Smirnov statistic, is published, and images with a score above 0.95 are counted.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.feature_statistics import FeatureStatistics
from mosa_deploy.bundles.preprocess import Array
from serving import metrics
from serving.loaded_task import LoadedTask

TOGETHER = 16
"""Images that are scored together, which takes a fifth of the time."""

UNKNOWN = 0.95
"""The score above which an image is counted; on validation images 5 % are."""


@dataclass
class Window:
    """The images of one version of a task since the last window was full."""

    key: str
    task: str
    statistics: FeatureStatistics
    size: int
    waiting: list[tuple[Array, Array]] = field(default_factory=list)
    """The features and probabilities of images that have no score yet."""
    scores: list[float] = field(default_factory=list)

    def add(self, features: Array, answer: Array) -> None:
        """Add an image by its features (F,) and its probabilities (K,)."""
        # A copy: the row of a batch would keep the whole batch.
        self.waiting.append((features.copy(), answer))
        if len(self.waiting) >= min(TOGETHER, self.size):
            self._score()

    def _score(self) -> None:
        features, answers = (np.stack(each) for each in zip(*self.waiting, strict=True))
        found = self.statistics.unknown(features, answers)
        self.waiting.clear()
        metrics.scored.labels(self.task).inc(len(found))
        metrics.unfamiliar.labels(self.task).inc(int((found > UNKNOWN).sum()))
        self.scores += found.tolist()
        while len(self.scores) >= self.size:
            metrics.drift.labels(self.task).set(unevenness(np.array(self.scores[: self.size])))
            del self.scores[: self.size]


class DriftMonitor:
    """The windows of all tasks. They stay when a task is evicted, and begin anew with another version."""

    def __init__(self, size: int) -> None:
        """`size` is the number of images in a window; 0 measures nothing."""
        self.size = size
        self._windows: dict[str, Window] = {}

    def add(self, loaded: LoadedTask, row: Array, answer: Array) -> None:
        """Add an image by what a task's lane gave for it, and its probabilities (K,)."""
        if loaded.statistics is None or not self.size:
            return
        task, key = loaded.version.record.task, loaded.version.key
        window = self._windows.get(task)
        if window is None or window.key != key:
            window = self._windows[task] = Window(key, task, loaded.statistics, self.size)
        window.add(loaded.features(row), answer)


def unevenness(scores: NDArray[np.float64]) -> float:
    """The Kolmogorov-Smirnov statistic of scores (n,) and the uniform distribution from 0 to 1."""
    ordered, count = np.sort(scores), len(scores)
    steps = np.arange(count + 1) / count
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))
