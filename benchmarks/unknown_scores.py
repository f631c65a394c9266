"""The scores that `benchmarks.unknown` compares: the higher, the more unknown an image is to a task."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mosa_deploy.bundles.feature_statistics import FeatureStatistics, doubts, unit_length
from training.unknown import DIRECTIONS, Answers, fit_statistics

Array = NDArray[np.float32]

Score = Callable[[Array], NDArray[np.floating]]
"""Features (n, F) -> scores (n,), or distances."""

C = (0.01, 0.1, 1.0)
"""The strengths of the logistic regression, of which validation chooses one."""


@dataclass(frozen=True)
class Known:
    """The features and labels of what a task was tuned on and validated by."""

    train: Array
    labels: NDArray[np.int64]
    validation: Array
    validation_labels: NDArray[np.int64]


def logits(known: Known) -> Score:
    """The logits (n, K) of a linear probe."""
    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000)).fit(known.train, known.labels)
        for c in C
    ]
    best = max(fits, key=lambda fit: fit.score(known.validation, known.validation_labels))
    return lambda features: np.asarray(best.decision_function(features))


def maximum_softmax(known: Known) -> Score:
    """The baseline, arXiv 1610.02136: what the likeliest class leaves to all others."""
    answer = logits(known)
    return lambda features: doubts(softmax(answer(features), axis=1))


def energy(known: Known) -> Score:
    """The negative log of the summed exponentials of the logits, arXiv 2010.03759."""
    answer = logits(known)
    return lambda features: -logsumexp(answer(features), axis=1)


def statistics_of(known: Known, directions: int = DIRECTIONS) -> tuple[FeatureStatistics, Score]:
    """What tuning would leave, and the probabilities of the probe."""
    logits_of = logits(known)

    def answer(features: Array) -> Array:
        return np.asarray(softmax(logits_of(features), axis=1), dtype=np.float32)

    validation = Answers(known.validation, answer(known.validation))
    statistics = fit_statistics(known.train, known.labels, validation, directions)
    assert statistics is not None
    return statistics, answer


def relative(known: Known, directions: int) -> Score:
    """The distance to the nearest class less that to all images, arXiv 2106.09022."""
    return statistics_of(known, directions)[0].distances


def joint(known: Known, directions: int) -> Score:
    """The same with the head's doubt."""
    statistics, answer = statistics_of(known, directions)
    return lambda features: statistics.strangeness(features, answer(features))


def mahalanobis(known: Known, directions: int) -> Score:
    """The distance to the nearest class, arXiv 1807.03888."""
    statistics, _ = statistics_of(known, directions)
    alone = replace(statistics, spread=np.zeros_like(statistics.spread))
    return alone.distances


def neighbours(known: Known, k: int) -> Score:
    """The cosine distance to the k-th nearest training image, arXiv 2204.06507."""
    stored = unit_length(known.train)
    return lambda features: -np.sort(unit_length(features) @ stored.T, axis=1)[:, -k]


DIMENSIONS = (64, 128, 256)

SCORES: dict[str, Callable[[Known], Score]] = {
    "maximum softmax": maximum_softmax,
    "energy": energy,
    **{f"{k} nearest": partial(neighbours, k=k) for k in (1, 5)},
    **{f"Mahalanobis, {d} directions": partial(mahalanobis, directions=d) for d in DIMENSIONS},
    **{f"relative Mahalanobis, {d} directions": partial(relative, directions=d) for d in DIMENSIONS},
    **{f"the same and maximum softmax, {d} directions": partial(joint, directions=d) for d in DIMENSIONS},
}

CHOSEN = f"the same and maximum softmax, {DIRECTIONS} directions"
"""What `mosa tune` leaves statistics for."""
