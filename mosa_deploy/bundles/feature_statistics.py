"""What a task's images look like in feature space, and how unknown another image is to it: from 0 to 1.

Tuning leaves these tensors in `adapter.safetensors`, so a bundle's digest covers them:

    unknown.centre      (F,)     c, the mean of the training images' features
    unknown.projection  (d, F)   P, which keeps d principal directions and whitens the scatter within classes
    unknown.means       (K, d)   m_k = P (mean of class k - c)
    unknown.spread      (d, d)   Q, which whitens the scatter of all training images in the same directions
    unknown.weights     (2,)     a, b
    unknown.curve       (2, q)   quantiles of validation: t, and log(p / (1 - p)) of the share p

Of features f, for which the head's largest probability is y, the relative Mahalanobis distance (arXiv 2106.09022) and
the head's doubt make

    z = P (f - c)        t(f) = a (min_k |z - m_k|^2 - |Q z|^2) + b log(1 - y)

and the score is read off the curve at t: it is the share of validation images that are less unknown. Beyond the last of
them the curve rises as a logarithm, so of two images the stranger one still has the higher score. This needs numpy
alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import BundleError

PREFIX = "unknown."

NAMES = ("centre", "projection", "means", "spread", "weights", "curve")

CERTAIN = 1e-6
"""The least doubt, 1 - y, that counts."""

TINY = 1e-30

Double = NDArray[np.float64]


@dataclass(frozen=True)
class FeatureStatistics:
    """The statistics of a task, float32; the shapes are above."""

    centre: Array
    projection: Array
    means: Array
    spread: Array
    weights: Array
    curve: Array

    @cached_property
    def _squares(self) -> Array:
        """|m_k|^2 of each class (K,)."""
        return np.asarray(np.square(self.means).sum(axis=1), dtype=np.float32)

    @cached_property
    def _slope(self) -> float:
        """How steep the curve is in its upper half, and so at its end."""
        strangeness, level = self.curve
        middle = len(level) // 2
        return float((level[-1] - level[middle]) / max(strangeness[-1] - strangeness[middle], TINY))

    def distances(self, features: Array) -> Array:
        """Features (n, F) -> relative distances to the nearest class (n,)."""
        points = (features - self.centre) @ self.projection.T
        to_classes = (self._squares - 2 * points @ self.means.T).min(axis=1) + np.square(points).sum(axis=1)
        to_all = np.square(points @ self.spread.T).sum(axis=1)
        return np.asarray(to_classes - to_all, dtype=np.float32)

    def strangeness(self, features: Array, probabilities: Array) -> Double:
        """Features (n, F) and the head's probabilities (n, K) -> t (n,)."""
        distance, doubt = self.weights.astype(np.float64)
        found: Double = distance * self.distances(features) + doubt * doubts(probabilities)
        return found

    def unknown(self, features: Array, probabilities: Array) -> Double:
        """Features (n, F) and the head's probabilities (n, K) -> scores (n,)."""
        found = self.strangeness(features, probabilities)
        strangeness, level = self.curve
        beyond = np.log1p(self._slope * np.maximum(found - strangeness[-1], 0))
        score: Double = 1 / (1 + np.exp(-np.interp(found, strangeness, level) - beyond))
        return score

    def to_tensors(self) -> dict[str, NDArray[np.generic]]:
        """The tensors that hold it in the bundle's safetensors file."""
        return {f"{PREFIX}{name}": getattr(self, name) for name in NAMES}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]], width: int) -> Self:
        """Make it of the tensors that `to_tensors` returned; the head reads features of this width F.

        Raises:
            BundleError: a tensor is missing, misshapen or not finite, or the curve does not rise.
        """
        try:
            parts = {name: tensors[f"{PREFIX}{name}"].astype(np.float32) for name in NAMES}
        except KeyError as error:
            raise BundleError(f"the bundle has no {error.args[0]}: tune the task again") from None
        found = cls(**parts)
        if fault := found._fault(width):
            raise BundleError(f"the bundle's statistics of its features {fault}: tune the task again")
        return found

    def _fault(self, width: int) -> str | None:
        shapes = {name: getattr(self, name).shape for name in NAMES}
        (kept, *_), (classes, *_) = (shapes[name] or (0,) for name in ("projection", "means"))
        wanted: dict[str, Any] = {
            "centre": (width,),
            "projection": (kept, width),
            "means": (classes, kept),
            "spread": (kept, kept),
            "weights": (2,),
        }
        odd = [name for name, shape in wanted.items() if shapes[name] != shape or not all(shape)]
        if odd or len(shapes["curve"]) != 2 or shapes["curve"][0] != 2 or shapes["curve"][1] < 2:
            return f"do not fit each other or the head ({', '.join(f'{name} {shapes[name]}' for name in NAMES)})"
        if not all(np.isfinite(getattr(self, name)).all() for name in NAMES):
            return "hold NaN or infinity"
        if (np.diff(self.curve, axis=1) < 0).any() or self.curve[1, 0] == self.curve[1, -1]:
            return "have a curve that does not rise"
        return None


def doubts(probabilities: Array) -> Double:
    """The logarithm of what the likeliest class leaves to all others, of probabilities (n, K) -> (n,)."""
    rest = 1 - probabilities.max(axis=1).astype(np.float64)
    found: Double = np.log(np.maximum(rest, CERTAIN))
    return found


def unit_length(features: Array) -> Array:
    """Features (..., F) divided by their Euclidean norm; zeros stay zeros."""
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return np.asarray(features / np.maximum(norms, TINY), dtype=np.float32)
