"""Statistics of features that are made by hand, and a reference implementation of their score in float64."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.feature_statistics import FeatureStatistics
from mosa_deploy.bundles.preprocess import Array
from tests.support.tasks import TaskMaker, packed

KNOWN = 8
"""The first images of the maker are class means: no others are as near."""


def with_statistics(maker: TaskMaker, archive: Archive) -> Archive:
    """The same task with statistics of its features on the maker's images."""
    bundle = archive.bundle()
    features, answers = maker.features(bundle), maker.offline(archive)
    centre = features.mean(axis=0)
    projection = np.linalg.svd(features - centre, full_matrices=False)[2][:KNOWN] / features.std()
    means = (features[:KNOWN] - centre) @ projection.T
    spread, weights = 0.1 * np.eye(KNOWN, dtype=np.float32), np.array([1, 0.01], dtype=np.float32)
    made = FeatureStatistics(centre, projection, means, spread, weights, np.zeros((2, 2), dtype=np.float32))
    found = np.sort(made.strangeness(features, answers)[KNOWN:])
    levels = np.linspace(-4, 4, len(found))
    return packed(replace(bundle, statistics=replace(made, curve=np.stack([found, levels]).astype(np.float32))))


def reference_scores(statistics: FeatureStatistics, features: Array, answers: Array) -> NDArray[np.float64]:
    """The score of each row of features and probabilities, one image and one class after the other."""
    centre, projection, means, spread, (a, b), curve = (
        getattr(statistics, name).astype(np.float64)
        for name in ("centre", "projection", "means", "spread", "weights", "curve")
    )
    scores = []
    for row, answer in zip(features.astype(np.float64), answers.astype(np.float64), strict=True):
        point = projection @ (row - centre)
        nearest = min(sum((point - mean) ** 2) for mean in means)
        distance = nearest - sum((spread @ point) ** 2)
        scores.append(_read_off(a * distance + b * math.log(max(1 - max(answer), 1e-6)), *curve.tolist()))
    return np.array(scores)


def _read_off(at: float, knots: list[float], levels: list[float]) -> float:
    middle = len(knots) // 2
    slope = (levels[-1] - levels[middle]) / (knots[-1] - knots[middle])
    if at <= knots[0]:
        level = levels[0]
    elif at >= knots[-1]:
        level = levels[-1] + math.log(1 + slope * (at - knots[-1]))
    else:
        i = next(i for i in range(1, len(knots)) if at <= knots[i])
        share = (at - knots[i - 1]) / (knots[i] - knots[i - 1])
        level = levels[i - 1] + share * (levels[i] - levels[i - 1])
    return 1 / (1 + math.exp(-level))
