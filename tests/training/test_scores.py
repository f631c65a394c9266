import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss

from training.scores import (
    classification_metrics,
    confusions,
    fit_temperature,
    kept,
    reliability,
    validation_row,
)
from training.tune_options import Select


def draw(count: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, 4, generator=generator)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_that_drew_the_labels_is_found(temperature: float) -> None:
    assert fit_temperature(*draw(20_000, temperature)) == pytest.approx(temperature, rel=0.05)


def test_temperature_of_faultless_logits_stays_at_its_bound() -> None:
    labels = torch.arange(30) % 3
    assert fit_temperature(0.1 * torch.eye(3)[labels], labels) == pytest.approx(0.05, rel=1e-3)


def test_calibration_error_is_the_formula_with_15_bins() -> None:
    logits, labels = draw(3000, 2.0)
    given = softmax(logits.double().numpy(), axis=1).astype(np.float32)
    confidence, correct = given.max(1), given.argmax(1) == labels.numpy()
    which = np.ceil(confidence * 15)
    expected = sum(
        abs(confidence[which == b].mean() - correct[which == b].mean()) * (which == b).mean() for b in np.unique(which)
    )
    assert len(np.unique(which)) > 8
    assert classification_metrics(given, labels)["ece"] == pytest.approx(expected, abs=1e-6)


def test_accuracy_and_nll_are_those_of_scikit_learn() -> None:
    logits, labels = draw(500, 2.0)
    exact = softmax(logits.double().numpy(), axis=1)
    measured = classification_metrics(exact.astype(np.float32), labels)
    assert measured["accuracy"] == pytest.approx(accuracy_score(labels.numpy(), exact.argmax(1)))
    assert measured["nll"] == pytest.approx(log_loss(labels.numpy(), exact), rel=1e-5)


def test_means_over_the_classes_are_those_worked_out_by_hand() -> None:
    # Class 0: 2 of 3 right; class 1: 1 of 1; class 2 never occurs and is predicted once.
    given = np.eye(4, dtype=np.float32)[[0, 0, 2, 1]]
    measured = classification_metrics(given, torch.tensor([0, 0, 0, 1]))
    assert measured["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert measured["macro_f1"] == pytest.approx((2 * 2 / (2 * 2 + 1) + 1 + 0) / 3)


def test_probability_of_zero_for_the_truth_keeps_the_nll_finite() -> None:
    given = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    assert classification_metrics(given, torch.tensor([1, 1]))["nll"] == pytest.approx(-np.log(1e-12) / 2)


SIX = np.array([[0.9, 0.1], [0.08, 0.92], [0.55, 0.45], [0.58, 0.42], [0.3, 0.7], [0.01, 0.99]], dtype=np.float32)
TRUTH = torch.tensor([0, 0, 0, 1, 1, 1])
"""The confidences are .9 .92 .55 .58 .7 .99; the second and the fourth prediction are wrong."""


def test_calibration_error_of_six_predictions_is_that_worked_out_by_hand() -> None:
    # Bins of 1/15: {.9, .92} half right, {.55, .58} half right, {.7} right, {.99} right.
    by_hand = (2 * (0.91 - 0.5) + 2 * (0.565 - 0.5) + (1 - 0.7) + (1 - 0.99)) / 6
    assert classification_metrics(SIX, TRUTH)["ece"] == pytest.approx(by_hand, abs=1e-6)


def test_reliability_of_six_predictions_is_that_worked_out_by_hand() -> None:
    confidence, accuracy, share = reliability(SIX, TRUTH)
    assert confidence == pytest.approx([0.565, 0.7, 0.91, 0.99])
    assert accuracy.tolist() == [0.5, 1, 0.5, 1]
    assert share == pytest.approx([1 / 3, 1 / 6, 1 / 3, 1 / 6])


def test_reliability_sums_up_to_the_calibration_error() -> None:
    logits, labels = draw(3000, 2.0)
    given = softmax(logits.numpy(), axis=1)
    confidence, accuracy, share = reliability(given, labels)
    assert float((share * abs(confidence - accuracy)).sum()) == pytest.approx(
        classification_metrics(given, labels)["ece"], abs=1e-6
    )


def test_confusions_are_sorted_by_images_then_by_share_and_leave_out_what_is_right() -> None:
    matrix = np.array([[90, 3, 0], [5, 1, 3], [0, 0, 7]])
    assert confusions(matrix, 9) == [(1, 0, 5), (1, 2, 3), (0, 1, 3)]
    assert confusions(matrix, 1) == [(1, 0, 5)]
    assert confusions(np.diag([1, 2]), 9) == []


def test_row_kept_is_the_most_accurate_then_of_least_loss_then_the_first() -> None:
    def rows(*pairs: tuple[float, float]) -> list[dict[str, float]]:
        return [{"validation_accuracy": accuracy, "validation_loss": loss} for accuracy, loss in pairs]

    assert kept(rows((0.5, 0.1), (0.7, 0.9), (0.6, 0.2))) == 1
    assert kept(rows((0.7, 0.9), (0.7, 0.8), (0.7, 0.8))) == 1
    assert kept([{"validation_accuracy": 0.5}, {"validation_accuracy": 0.5}]) == 0


@pytest.mark.parametrize(("select", "best"), [("accuracy", 0), ("balanced", 1), ("loss", 2)])
def test_what_selects_decides_which_epoch_is_kept(select: Select, best: int) -> None:
    columns = ("validation_accuracy", "validation_balanced_accuracy", "validation_loss")
    history = [dict(zip(columns, row, strict=True)) for row in ((0.9, 0.5, 0.4), (0.8, 0.7, 0.5), (0.7, 0.6, 0.3))]
    assert kept(history, select) == best


def test_the_columns_that_select_are_those_of_the_logits() -> None:
    logits = torch.log(torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]))
    row = validation_row(logits, torch.tensor([0, 0, 1]))
    assert row["validation_accuracy"] == pytest.approx(2 / 3)
    assert row["validation_balanced_accuracy"] == pytest.approx(1 / 2)
    assert row["validation_loss"] == pytest.approx(-np.log([0.9, 0.6, 0.3]).mean())
