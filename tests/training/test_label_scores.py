"""Several labels per image: metrics, calibration and thresholds, compared with scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, label_ranking_average_precision_score, log_loss

from mosa_deploy.bundles.answers import decide
from training.label_scores import (
    SCALES,
    average_precisions,
    calibrate,
    choose_threshold,
    fit_sigmoid,
    label_metrics,
    label_remarks,
    label_row,
    mean_average_precision,
)
from training.scores import kept


def draw(count: int, scale: float = 1.0, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, 3), and labels drawn from sigmoid(scale z + offset)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, 3))
    labels = rng.random((count, 3)) < expit(scale * logits + offset)
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)


@pytest.mark.parametrize(("scale", "offset"), [(0.3, 1.0), (1.0, 0.0), (2.0, -2.0)])
def test_scale_and_offset_that_drew_the_labels_are_found(scale: float, offset: float) -> None:
    found = calibrate(*draw(20_000, scale, offset))
    assert found.scales == pytest.approx([scale] * 3, rel=0.1)
    assert found.offsets == pytest.approx([offset] * 3, abs=0.1)


def test_the_fit_of_many_images_is_scikit_learn_s_regression_on_the_output() -> None:
    logits, labels = draw(3000, 0.7, -0.5)
    column, targets = logits[:, 0].double().numpy(), labels[:, 0].numpy().astype(np.int64)
    regression = LogisticRegression(C=1e8, tol=1e-8).fit(column[:, None], targets)
    assert fit_sigmoid(column, targets) == pytest.approx(
        [regression.coef_.item(), regression.intercept_.item()], rel=0.02
    )


def test_a_label_that_is_separated_does_not_become_certain() -> None:
    logits = np.array([-1.0, -0.9, 1.0, 1.1])
    scale, offset = fit_sigmoid(logits, np.array([0, 0, 1, 1]))
    assert expit(scale * logits + offset) == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=0.02)
    assert SCALES[0] < scale < SCALES[1]


def test_a_threshold_has_the_best_f1_of_all() -> None:
    logits, labels = draw(80)
    scores, targets = expit(logits[:, 1].numpy()), labels[:, 1].numpy().astype(np.int64)
    by_all = max(f1_score(targets, scores >= threshold) for threshold in scores)
    assert f1_score(targets, scores >= choose_threshold(scores, targets)) == pytest.approx(by_all)


def test_a_threshold_lies_halfway_between_two_scores() -> None:
    assert choose_threshold(np.array([0.1, 0.3, 0.8]), np.array([0, 0, 1])) == pytest.approx((0.3 + 0.8) / 2)
    assert choose_threshold(np.array([0.2, 0.3, 0.8]), np.array([1, 1, 1])) == pytest.approx(0.1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_label_that_none_or_all_have_keeps_a_plain_sigmoid(value: float) -> None:
    logits, labels = draw(50, 2.0)
    labels[:, 1] = value
    found = calibrate(logits, labels)
    assert (found.scales[1], found.offsets[1], found.thresholds[1]) == (1.0, 0.0, 0.5)
    assert found.scales[0] != 1.0
    (remark,) = label_remarks(found.scores(logits.numpy()), labels, ("a", "b", "c"))
    assert remark.startswith("warning: all of these images have b, or none has: ")


def test_the_mean_leaves_out_labels_that_no_image_has() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 0]])
    scores = np.array([[0.9, 0.9], [0.8, 0.1], [0.7, 0.2]], dtype=np.float32)
    assert mean_average_precision(targets, scores) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(average_precisions(targets, scores)[1])


def test_metrics_are_those_of_scikit_learn() -> None:
    logits, labels = draw(300)
    scores, targets = expit(logits.numpy()).astype(np.float32), labels.numpy().astype(np.int64)
    found, answered = label_metrics(scores, labels, (0.5, 0.4, 0.3)), decide(scores, (0.5, 0.4, 0.3))
    assert found["macro_f1"] == pytest.approx(f1_score(targets, answered, average="macro"))
    assert found["micro_f1"] == pytest.approx(f1_score(targets, answered, average="micro"))
    assert found["accuracy"] == pytest.approx((targets == answered).all(1).mean())
    assert found["nll"] == pytest.approx(log_loss(targets.ravel(), scores.ravel()), rel=1e-5)
    by_rows = label_ranking_average_precision_score(targets.T, scores.T)  # The same of a label's images.
    assert 0.5 < found["map"] <= 1
    assert found["map"] == pytest.approx(by_rows, abs=0.02)


def test_a_single_label_is_measured_too() -> None:
    found = label_metrics(np.array([[0.9], [0.2]], dtype=np.float32), torch.tensor([[1.0], [0.0]]), (0.5,))
    assert (found["map"], found["accuracy"], found["macro_f1"]) == (1, 1, 1)


def test_scores_of_nothing_are_doubted() -> None:
    _, labels = draw(60)
    scores = np.random.default_rng(8).random((60, 3)).astype(np.float32)
    (remark,) = label_remarks(scores, labels, ("a", "b", "c"))
    assert remark.startswith("warning: this learned nothing that 60 images can show: mAP 0.")


def test_the_epoch_of_the_highest_map_is_kept() -> None:
    logits, labels = draw(100)
    rows = [label_row(factor * logits, labels) for factor in (-1.0, 5.0, 1.0)]
    assert rows[1]["validation_map"] == rows[2]["validation_map"] > rows[0]["validation_map"]
    assert kept(rows, "map") == kept(rows, "loss") == 2
