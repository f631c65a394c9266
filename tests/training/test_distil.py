"""What a task that gets more classes holds on to, and where the rows of the new ones start."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mosa_deploy.adapters.attach import attach
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy, perturb
from training.data import whole
from training.devices import Computing
from training.distil import Held, distillation
from training.loop import Trainer
from training.new_rows import LAMBDA, fitted_rows
from training.recipe import Recipe, adapter_config
from training.tune_options import ExecutionOptions

Numbers = NDArray[np.float64]


def random(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: Numbers) -> Numbers:
    found: Numbers = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return found


def written_out(logits: Tensor, taught: Tensor) -> float:
    """T^2 sum_k p_k log(p_k / q_k) at T = 2 over the first classes, averaged over the images, in float64."""
    q = softmax(logits.double().numpy()[:, : taught.shape[1]] / 2)
    p = softmax(taught.double().numpy() / 2)
    return float(4 * (p * np.log(p / q)).sum(1).mean())


def test_the_distillation_loss_is_the_divergence_over_the_old_classes() -> None:
    logits, taught = random(6, 5), random(6, 3, seed=1)
    assert float(distillation(logits, taught)) == pytest.approx(written_out(logits, taught), rel=1e-5)
    assert float(distillation(torch.cat([taught, logits[:, 3:]], 1), taught)) == pytest.approx(0, abs=1e-6)


def test_every_pass_and_every_sample_is_taught_by_its_own_image() -> None:
    taught, rows = random(5, 3), torch.tensor([4, 0, 2])
    held = Held(taught, 1.0)
    # Two passes of three images, with two samples each of every image in turn.
    own = taught[[4, 4, 0, 0, 2, 2, 4, 4, 0, 0, 2, 2]]
    assert float(held.loss(torch.cat([own, random(12, 2)], 1), rows, 2, 2)) == pytest.approx(0, abs=1e-6)
    assert float(held.loss(torch.cat([own.flip(0), random(12, 2)], 1), rows, 2, 2)) > 0.1


RECIPE = Recipe(backbone="toy", bottleneck=4, experts=3, dropout=0.0, epochs=3, batch_size=8, lr=1e-2)

IMAGES = random_images(7, 3)


def step(toy: Toy, weight: float | None, accumulate: int = 1, **changes: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The terms and the gradients of one step, taught two of three classes with a weight, or not."""
    recipe = Recipe(**{**vars(RECIPE), **changes})
    model = attach(toy(num_classes=3), adapter_config(recipe))
    perturb(model)
    computing = Computing(execution=ExecutionOptions(accumulate=accumulate))
    trainer = Trainer(model, IMAGES, IMAGES, PREPROCESS, recipe, 0, computing)
    if weight is not None:
        trainer.step.held = Held(random(7, 2), weight)
    trainer.model.train()
    terms, _ = trainer.step(whole(IMAGES))
    return terms, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def test_the_gradient_has_the_distillation_with_its_weight(toy: Toy) -> None:
    (plain, without), (_, zero), (_, one), (terms, three) = (step(toy, weight) for weight in (None, 0.0, 1.0, 3.0))
    assert len(plain) == 2
    torch.testing.assert_close(terms[:2], plain)
    assert terms[2] > 0.1
    for name, gradient in without.items():
        assert torch.equal(zero[name], gradient)
        torch.testing.assert_close(three[name] - gradient, 3 * (one[name] - gradient), rtol=1e-3, atol=1e-5)
    assert any(not torch.allclose(one[name], gradient) for name, gradient in without.items())


@pytest.mark.parametrize("accumulate", [2, 7])
def test_a_batch_in_parts_is_taught_like_the_whole(toy: Toy, accumulate: int) -> None:
    (terms, expected), (parts, found) = (step(toy, 2.0, each) for each in (1, accumulate))
    torch.testing.assert_close(parts, terms)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_one_new_class_beside_one_that_stays_is_scikit_learns_logistic_regression() -> None:
    features, labels = random(80, 4, scale=2.0), (random(80, seed=2) > 0).long()
    features[:, 1] += labels
    found = fitted_rows(features, labels, torch.zeros(80, 1), 1, None).double().numpy()
    penalty = LAMBDA * float(features.double().var(0).mean())
    regression = LogisticRegression(C=1 / (2 * penalty * 80), tol=1e-10, max_iter=10_000)
    regression.fit(features.double().numpy(), labels.numpy())
    np.testing.assert_allclose(found[0, :-1], regression.coef_[0], rtol=1e-3)
    assert found[0, -1] == pytest.approx(regression.intercept_[0], rel=1e-3)


def test_the_rows_have_the_lowest_weighed_loss_beside_those_that_stay() -> None:
    features, labels, known = random(60, 4), torch.arange(60) % 5, random(60, 3, seed=1, scale=1.0)
    weights = torch.tensor([2.0, 1.0, 1.0, 0.5, 3.0])
    found = fitted_rows(features, labels, known, 2, weights).double().numpy()
    x = np.concatenate([features.double().numpy(), np.ones((60, 1))], 1)

    def loss(rows: Numbers) -> float:
        p = softmax(np.concatenate([known.double().numpy(), x @ rows.T], 1))[np.arange(60), labels.numpy()]
        w = weights.double().numpy()[labels.numpy()]
        return float(
            (w * -np.log(p)).sum() / w.sum() + LAMBDA * x[:, :-1].var(0, ddof=1).mean() * (rows[:, :-1] ** 2).sum()
        )

    least = loss(found)
    for i, j in np.ndindex(*found.shape):
        for change in (-1e-2, 1e-2):
            other = found.copy()
            other[i, j] += change
            assert loss(other) > least
