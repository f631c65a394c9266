import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss

from training.metrics import figures, fit_temperature


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
    assert figures(given, labels)["ece"] == pytest.approx(expected, abs=1e-6)


def test_accuracy_and_nll_are_those_of_scikit_learn() -> None:
    logits, labels = draw(500, 2.0)
    exact = softmax(logits.double().numpy(), axis=1)
    measured = figures(exact.astype(np.float32), labels)
    assert measured["accuracy"] == pytest.approx(accuracy_score(labels.numpy(), exact.argmax(1)))
    assert measured["nll"] == pytest.approx(log_loss(labels.numpy(), exact), rel=1e-5)


def test_probability_of_zero_for_the_truth_keeps_the_nll_finite() -> None:
    given = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    assert figures(given, torch.tensor([1, 1]))["nll"] == pytest.approx(-np.log(1e-12) / 2)
