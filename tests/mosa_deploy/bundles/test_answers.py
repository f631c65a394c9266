"""What outputs mean, and which classes are answered: one per image, or every label that reaches its threshold."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit

from mosa_deploy.bundles.answers import PerLabel, decide, expected, ranked, threshold_fault

SCORES = np.array([0.2, 0.9, 0.6, 0.4], dtype=np.float32)
THRESHOLDS = (0.1, 0.95, 0.5, 0.5)


def test_the_score_of_a_label_is_the_sigmoid_of_its_scaled_output() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (20, 2)).astype(np.float32)
    given = PerLabel(scales=(0.5, 3.0), offsets=(-1.0, 2.0), thresholds=(0.5, 0.5))
    np.testing.assert_allclose(given.scores(logits), expit(logits * [0.5, 3.0] + [-1.0, 2.0]), rtol=1e-6)


def test_scores_of_extreme_outputs_are_finite() -> None:
    logits = np.array([[-1e4, 1e4]], dtype=np.float32)
    assert PerLabel.uncalibrated(2).scores(logits).tolist() == [[0.0, 1.0]]


def test_every_label_needs_a_scale_an_offset_and_a_threshold() -> None:
    with pytest.raises(ValidationError, match="one of each for every label"):
        PerLabel(scales=(1.0, 1.0), offsets=(0.0,), thresholds=(0.5,))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_no_threshold(threshold: float) -> None:
    assert threshold_fault(threshold) == f"{threshold:g} is no threshold: 0 to 1"
    with pytest.raises(ValidationError):
        PerLabel(scales=(1.0,), offsets=(0.0,), thresholds=(threshold,))


@pytest.mark.parametrize(
    ("top_k", "threshold", "answered"),
    [
        (None, None, [2, 0]),
        (1, None, [2]),
        (None, 0.0, [1, 2, 3, 0]),
        (2, 0.0, [1, 2]),
        (None, 0.4, [1, 2, 3]),
        (None, 1.0, []),
    ],
)
def test_all_labels_at_or_above_their_thresholds_are_answered_the_likeliest_first(
    top_k: int | None, threshold: float | None, answered: list[int]
) -> None:
    assert ranked(SCORES, THRESHOLDS, top_k, threshold) == answered


def test_of_one_class_per_image_the_likeliest_five_are_answered() -> None:
    assert ranked(np.arange(8, dtype=np.float32), None, None) == [7, 6, 5, 4, 3]
    assert ranked(np.arange(8, dtype=np.float32), None, 2) == [7, 6]


def test_decisions_are_the_likeliest_class_or_the_labels_that_reach_their_thresholds() -> None:
    assert decide(SCORES, None).tolist() == [False, True, False, False]
    assert decide(SCORES[None], THRESHOLDS).tolist() == [[True, False, True, False]]


def test_numbers_and_marks_say_the_same_of_right_answers() -> None:
    assert expected(np.array([2, 0]), 3).tolist() == expected(np.array([[0, 0, 1], [1, 0, 0]]), 3).tolist()
