"""Statistics of a task's features at the end of tuning, by which unknown images are told.

`mosa_deploy.bundles.feature_statistics` says what they are. Class means and scatters come from training images, weights
and quantiles from validation images, which the task was not tuned on. Distances and doubts are divided by their
standard deviations there. The formula and its settings were chosen by `python -m benchmarks.unknown`.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit, logit
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from mosa_deploy.adapters.probe import TunedModel
from mosa_deploy.bundles.feature_statistics import TINY, FeatureStatistics, doubts
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.record import Record
from mosa_deploy.utils.seeds import derive
from training.data import Images, ImageSet
from training.entry import Entry
from training.loop import PREDICTED, logits_of

IMAGES = 2048
"""The most training images whose features are computed, unless a class would have fewer than `PER_CLASS`."""

PER_CLASS = 8

FEWEST = 20
"""With fewer validation images their quantiles say little, and a bundle gets no statistics."""

DIRECTIONS = 128
"""d, the most principal directions that are kept."""

QUANTILES = 33

FLAT = 1e-6
"""The least standard deviation, so that a term which never differs weighs finitely."""

Numbers = NDArray[np.float64]


class Answers(NamedTuple):
    """What a tuned task made of images."""

    features: NDArray[np.float32]
    """(M, F)"""
    probabilities: NDArray[np.float32]
    """(M, K), calibrated."""


def predict_with_features(
    model: TunedModel, images: ImageSet, preprocess: Preprocess, device: str
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and the features (N, F) that the head reads, as `predict` gives logits."""
    return logits_and_features(model, Entry.whole(model, preprocess), images, device)


def logits_and_features(model: TunedModel, entry: Entry, images: ImageSet, device: str) -> tuple[Tensor, Tensor]:
    """The same of images that enter the model as `entry` says."""
    found: list[Tensor] = []
    watch = model.get_classifier().register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].cpu()))
    try:
        logits = logits_of(model, entry, images, device, torch.arange(len(images)))
    finally:
        watch.remove()
    return logits, torch.cat(found)


def pixels_of(images: ImageSet, index: list[int], preprocess: Preprocess) -> Tensor:
    """The pixels (n, H, W, 3) of these images in the size that the task reads; some sets have a margin."""
    return without_margin(images.take(index), preprocess)


def without_margin(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """The same of pixels (n, H', W', 3)."""
    if tuple(pixels.shape[1:3]) == preprocess.size:
        return pixels
    read = [preprocess.pixels(Image.fromarray(image)) for image in pixels.cpu().numpy()]
    return torch.from_numpy(np.stack(read)).to(pixels.device)


def statistics_of(
    model: TunedModel, record: Record, train: ImageSet, validation: Answers, device: str
) -> FeatureStatistics | None:
    """The statistics of a tuned model; `validation` is what it made of its validation images.

    None if no graph would give the features of the task, if there are too few images, or if these have several labels
    each, so that there is no class that they could be near.
    """
    if record.tunes_backbone or record.sequential or record.multi_label or len(validation.features) < FEWEST:
        return None
    count = max(IMAGES, PER_CLASS * len(record.classes))
    generator = torch.Generator().manual_seed(derive(record.seed, "unknown"))
    index = torch.randperm(len(train), generator=generator)[:count]
    found: list[Tensor] = []
    for rows in index.split(PREDICTED):
        part = Images(pixels_of(train, rows.tolist(), record.preprocess), train.labels[rows], ())
        found.append(predict_with_features(model, part, record.preprocess, device)[1])
    return fit_statistics(torch.cat(found).numpy(), train.labels[index].numpy(), validation)


def fit_statistics(
    train: NDArray[np.float32], labels: NDArray[np.int64], validation: Answers, directions: int = DIRECTIONS
) -> FeatureStatistics | None:
    """The statistics of training features (N, F) with labels (N,), calibrated on validation images.

    None if there is one class, if no class has a second image, or if the features do not differ.
    """
    features, present = train.astype(np.float64), np.unique(labels)
    if len(present) < 2 or len(features) <= len(present):
        return None
    centre = features.mean(axis=0)
    principal = np.linalg.svd(features - centre, full_matrices=False)[2][:directions]
    points = (features - centre) @ principal.T
    means = np.stack([points[labels == k].mean(axis=0) for k in present])
    whitening, spread = whiten(points - means[np.searchsorted(present, labels)]), whiten(points)
    if whitening is None or spread is None:
        return None
    # The spread is applied to points that are whitened already.
    spread = spread @ np.linalg.inv(whitening)
    parts = (centre, whitening @ principal, means @ whitening.T, spread, np.ones(2), np.zeros((2, 2)))
    found = FeatureStatistics(*(each.astype(np.float32) for each in parts))
    terms = found.distances(validation.features), doubts(validation.probabilities)
    weights = [1 / max(float(np.std(term)), FLAT) for term in terms]
    found = replace(found, weights=np.array(weights, dtype=np.float32))
    return replace(found, curve=curve_of(found.strangeness(validation.features, validation.probabilities)))


def whiten(scatter: Numbers) -> Numbers | None:
    """W (d, d) after which the rows of `scatter` (N, d) have covariance 1; None if they do not differ.

    The covariance is shrunk towards a multiple of the identity, by as much as Ledoit and Wolf estimate.
    """
    covariance, _ = ledoit_wolf(scatter, assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)
    if variances[0] <= TINY:
        return None
    whitening: Numbers = axes.T / np.sqrt(variances)[:, None]
    return whitening


def curve_of(strangeness: Numbers) -> NDArray[np.float32]:
    """The quantiles (2, q) of how strange validation images are (M,), evenly spaced in log(p / (1 - p))."""
    count = len(strangeness)
    last = float(logit(1 - 0.5 / count))
    levels = np.linspace(-last, last, min(count, QUANTILES))
    return np.stack([np.quantile(strangeness, expit(levels), method="hazen"), levels]).astype(np.float32)
