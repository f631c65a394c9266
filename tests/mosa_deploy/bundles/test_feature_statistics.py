"""The score of unknown images, from statistics that are made up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.feature_statistics import FeatureStatistics, unit_length
from mosa_deploy.bundles.record import TENSORS, read_record
from mosa_deploy.errors import BundleError
from tests.support.statistics import reference_scores

CLASSES, KEPT, WIDTH = 5, 4, 12


def made_up(width: int = WIDTH, seed: int = 0) -> FeatureStatistics:
    """Statistics of features of some width, far from the origin as real ones are."""
    random = np.random.default_rng(seed)
    shapes = {"centre": (width,), "projection": (KEPT, width), "means": (CLASSES, KEPT), "spread": (KEPT, KEPT)}
    parts = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    parts["centre"] += 20
    parts["spread"] *= 0.2
    weights = np.array([0.1, 0.5], dtype=np.float32)
    curve = np.stack([np.sort(random.normal(1, 2, 9)), np.linspace(-4, 4, 9)]).astype(np.float32)
    return FeatureStatistics(**parts, weights=weights, curve=curve)


def answers(images: int, seed: int = 0) -> NDArray[np.float32]:
    """Probabilities (n, K), some of which leave no doubt."""
    logits = np.random.default_rng(seed).normal(scale=8, size=(images, CLASSES))
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True), dtype=np.float32)


def test_the_score_is_that_of_the_reference_in_float64() -> None:
    statistics = made_up()
    scale = np.geomspace(1e-3, 30, 200)[:, None]
    features = (statistics.centre + scale * np.random.default_rng(1).normal(size=(200, WIDTH))).astype(np.float32)
    given = answers(200)
    wanted = reference_scores(statistics, features, given)
    np.testing.assert_allclose(statistics.unknown(features, given), wanted, rtol=1e-3, atol=1e-5)
    assert given.max() == 1
    assert wanted.min() < 0.1
    assert wanted.max() > 0.999


def test_of_two_images_beyond_all_of_validation_the_further_one_has_the_higher_score() -> None:
    statistics = made_up()
    away = np.ones(WIDTH, dtype=np.float32)
    features = np.stack([statistics.centre + length * away for length in (10, 12, 1000)])
    scores = statistics.unknown(features, np.full((3, CLASSES), 0.2, dtype=np.float32))
    assert (np.diff(scores) > 0).all()
    assert scores[-1] < 1


def test_the_head_s_doubt_makes_an_image_more_unknown() -> None:
    statistics, doubtful = made_up(), np.array([[0.2] * 5, [0.96] + [0.01] * 4, [1, 0, 0, 0, 0]], dtype=np.float32)
    features = np.repeat(statistics.centre[None], 3, axis=0)
    assert (np.diff(statistics.strangeness(features, doubtful)) < 0).all()
    assert (np.diff(statistics.unknown(features, doubtful)) <= 0).all()


def test_statistics_travel_in_the_bundle_and_its_digest_covers_them(bundle: Bundle, tmp_path: Path) -> None:
    plain = bundle.save(tmp_path / "plain").digest
    saved = replace(bundle, statistics=made_up(width=3)).save(tmp_path / "told")
    loaded = Bundle.load(tmp_path / "told")
    assert loaded.statistics is not None
    for name, value in made_up(width=3).to_tensors().items():
        np.testing.assert_array_equal(loaded.statistics.to_tensors()[name], value)
    assert loaded.record.unknown == "relative"
    assert loaded.tensors.keys() == bundle.tensors.keys()
    assert len({plain, saved.digest, replace(bundle, statistics=made_up(3, seed=1)).save(tmp_path / "b").digest}) == 3
    assert Bundle.load(tmp_path / "plain").statistics is None
    assert read_record(tmp_path / "plain").unknown is None


def test_statistics_of_which_the_record_says_nothing_are_unexpected(bundle: Bundle, tmp_path: Path) -> None:
    replace(bundle, statistics=made_up(width=3)).save(tmp_path)
    record = read_record(tmp_path).model_copy(update={"unknown": None})
    with pytest.raises(BundleError, match=r"do not fit its record: unexpected unknown\.centre"):
        Bundle.parse(record, (tmp_path / TENSORS).read_bytes(), "some file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"centre": np.zeros(2, dtype=np.float32)}, "do not fit each other or the head"),
        ({"means": np.zeros((CLASSES, KEPT + 1), dtype=np.float32)}, "do not fit each other or the head"),
        ({"means": np.zeros((0, KEPT), dtype=np.float32)}, "do not fit each other or the head"),
        ({"projection": np.zeros((), dtype=np.float32)}, "do not fit each other or the head"),
        ({"curve": np.zeros((2, 1), dtype=np.float32)}, "do not fit each other or the head"),
        ({"centre": np.full(WIDTH, np.nan, dtype=np.float32)}, "hold NaN or infinity"),
        ({"curve": np.array([[1, 0], [0, 1]], dtype=np.float32)}, "have a curve that does not rise"),
        ({"curve": np.array([[0, 1], [1, 1]], dtype=np.float32)}, "have a curve that does not rise"),
    ],
)
def test_damaged_statistics_are_refused_in_one_line(change: dict[str, NDArray[np.float32]], said: str) -> None:
    tensors = replace(made_up(), **change).to_tensors()
    with pytest.raises(BundleError, match=rf"^the bundle's statistics of its features {said}.*: tune the task again$"):
        FeatureStatistics.from_tensors(tensors, WIDTH)


def test_a_missing_tensor_is_named() -> None:
    tensors = made_up().to_tensors()
    del tensors["unknown.means"]
    with pytest.raises(BundleError, match=r"^the bundle has no unknown\.means: tune the task again$"):
        FeatureStatistics.from_tensors(tensors, WIDTH)


def test_features_of_unit_length_keep_their_direction_and_zeros_stay() -> None:
    features = np.array([[3, 4], [0, 0], [0, -2]], dtype=np.float32)
    wanted = np.array([[0.6, 0.8], [0, 0], [0, -1]], dtype=np.float32)
    np.testing.assert_allclose(unit_length(features), wanted, rtol=1e-6)
