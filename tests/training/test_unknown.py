"""Statistics of features at the end of tuning, beside a reference in float64."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstest
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from mosa_deploy import Predictor
from mosa_deploy.bundles.bundle import Bundle
from tests.support.tasks import picture
from training.unknown import Answers, fit_statistics

CLASSES, WIDTH, KEPT = 4, 10, 6

Numbers = NDArray[np.float32]


def drawn(images: int, seed: int, shift: float = 0.0) -> tuple[Numbers, NDArray[np.int64]]:
    """Features of some classes, whose scatter is the same and not round; `shift` moves them all."""
    random = np.random.default_rng(seed)
    means, mix = (np.random.default_rng(99).normal(size=(n, WIDTH)) for n in (CLASSES, WIDTH))
    labels = random.integers(0, CLASSES, images)
    features = 3 * means[labels] + random.normal(size=(images, WIDTH)) @ mix + shift
    return features.astype(np.float32), labels


def answered(features: Numbers) -> Answers:
    """What a task made of images whose head has no opinion."""
    return Answers(features, np.full((len(features), CLASSES), 1 / CLASSES, dtype=np.float32))


def reference_distances(train: Numbers, labels: NDArray[np.int64], asked: Numbers) -> NDArray[np.float64]:
    """The squared Mahalanobis distance to the nearest class less that to all images, by inverse covariances."""
    x, y = train.astype(np.float64), asked.astype(np.float64)
    variances, axes = np.linalg.eigh(np.cov(x, rowvar=False))
    principal = axes[:, np.argsort(-variances)[:KEPT]]
    x, y = ((each - train.mean(axis=0, dtype=np.float64)) @ principal for each in (x, y))
    means = [x[labels == k].mean(axis=0) for k in range(CLASSES)]
    within, whole = (
        np.linalg.inv(ledoit_wolf(each, assume_centered=True)[0]) for each in (x - np.array(means)[labels], x)
    )
    return np.array([min((row - mean) @ within @ (row - mean) for mean in means) - row @ whole @ row for row in y])


def test_distances_are_those_of_the_reference_in_float64() -> None:
    train, labels = drawn(300, 0)
    asked, _ = drawn(50, 1)
    statistics = fit_statistics(train, labels, answered(drawn(100, 2)[0]), KEPT)
    assert statistics is not None
    wanted = reference_distances(train, labels, asked)
    np.testing.assert_allclose(statistics.distances(asked), wanted, rtol=1e-3, atol=1e-3)


def test_scores_of_new_images_of_the_same_kind_are_spread_evenly() -> None:
    statistics = fit_statistics(*drawn(400, 0), answered(drawn(400, 1)[0]))
    assert statistics is not None
    assert kstest(statistics.unknown(*answered(drawn(400, 2)[0])), "uniform").statistic < 0.1
    assert kstest(statistics.unknown(*answered(drawn(400, 2, shift=3)[0])), "uniform").statistic > 0.3


def test_a_class_that_the_task_does_not_know_is_more_unknown() -> None:
    train, labels = drawn(400, 0)
    kept = labels < CLASSES - 1
    asked, others = drawn(400, 2)
    validation, of = drawn(200, 1)
    statistics = fit_statistics(train[kept], labels[kept], answered(validation[of < CLASSES - 1]))
    assert statistics is not None
    assert roc_auc_score(others == CLASSES - 1, statistics.unknown(*answered(asked))) > 0.8


def test_distance_and_doubt_weigh_the_same_on_validation() -> None:
    validation, of = drawn(200, 1)
    sure = np.random.default_rng(0).uniform(0.4, 1, 200)
    probabilities = np.full((200, CLASSES), 0.0) + ((1 - sure) / (CLASSES - 1))[:, None]
    probabilities[np.arange(200), of] = sure
    statistics = fit_statistics(*drawn(400, 0), Answers(validation, probabilities.astype(np.float32)))
    assert statistics is not None
    distance, doubt = statistics.weights
    assert distance * np.std(statistics.distances(validation)) == pytest.approx(1, rel=1e-4)
    assert doubt * np.std(np.log(1 - sure)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("images", [CLASSES, 1])
def test_classes_of_one_image_each_have_no_statistics(images: int) -> None:
    train, _ = drawn(images, 0)
    assert fit_statistics(train, np.arange(images), answered(drawn(100, 1)[0])) is None


def test_features_that_do_not_differ_have_no_statistics() -> None:
    train = np.ones((50, WIDTH), dtype=np.float32)
    assert fit_statistics(train, np.arange(50) % 2, answered(train)) is None


def test_a_run_leaves_statistics_and_its_export_keeps_them(digits_run: Path, store: Path) -> None:
    tuned, exported = Bundle.load(digits_run), Bundle.load(store / "tasks" / "digits")
    assert tuned.record.form != exported.record.form
    assert tuned.record.unknown == exported.record.unknown == "relative"
    assert tuned.statistics is not None
    assert exported.statistics is not None
    assert tuned.statistics.means.shape[0] == 10
    for name, value in tuned.statistics.to_tensors().items():
        np.testing.assert_array_equal(exported.statistics.to_tensors()[name], value)


def test_a_picture_is_more_unknown_to_a_task_than_its_canary(store: Path) -> None:
    predictor = Predictor.open(store / "tasks" / "digits", threads=1)
    known = [predictor.unknown(image) for image in predictor.bundle.canary.images]
    unknown = [predictor.unknown(picture(seed)) for seed in range(4)]
    assert None not in (*known, *unknown)
    assert min(each for each in unknown if each is not None) > max(each for each in known if each is not None)
