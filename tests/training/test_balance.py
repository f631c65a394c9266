from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F

from mosa_deploy.adapters.loss import pass_losses
from mosa_deploy.errors import ConfigError
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy
from training.balance import class_weights, epoch_order, small_class_remarks
from training.config import TuneConfig
from training.data import Images
from training.loop import predict
from training.probe import fit_probe
from training.recipe import Recipe

LABELS = torch.tensor([0] * 90 + [1] * 9 + [2] * 1)


def test_weights_are_those_of_scikit_learn() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    np.testing.assert_allclose(class_weights(LABELS, 3).numpy(), expected, rtol=1e-6)


def test_a_balanced_loss_is_the_weighted_mean() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels, weight = torch.tensor([0, 0, 0, 0, 1, 2]), torch.tensor([0.5, 2.0, 3.0])
    each = F.cross_entropy(logits.double(), labels, reduction="none").numpy()
    expected = np.average(each, weights=weight[labels].numpy())
    given, _ = pass_losses(logits.repeat(2, 1), labels, 2, weight)
    assert float(given) == pytest.approx(expected, rel=1e-5)


def counts(order: Tensor) -> list[int]:
    return LABELS[order].bincount(minlength=3).tolist()


def test_the_sampler_draws_all_classes_equally_often() -> None:
    torch.manual_seed(0)
    drawn = torch.cat([epoch_order(LABELS, 3, "sampler") for _ in range(30)])
    # 3,000 draws of three classes: the standard deviation of a count is 26.
    assert counts(drawn) == pytest.approx([1000] * 3, abs=100)


@pytest.mark.parametrize("balance", ["none", "loss"])
def test_without_the_sampler_every_image_comes_once(balance: Any) -> None:
    assert sorted(epoch_order(LABELS, 3, balance).tolist()) == list(range(100))


def test_small_classes_are_named_with_the_ways_on() -> None:
    (line,) = small_class_remarks(LABELS, ("cat", "dog", "emu"), "none")
    assert line.startswith("warning: few training images of dog (9), emu (1), 90 of the largest class:")
    assert line.endswith("--balance loss or --balance sampler gives all classes the same weight")
    assert "--balance" not in small_class_remarks(LABELS, ("cat", "dog", "emu"), "loss")[0]


def test_a_fiftieth_of_the_largest_class_is_few() -> None:
    labels = torch.tensor([0] * 1000 + [1] * 19 + [2] * 20)
    (line,) = small_class_remarks(labels, ("cat", "dog", "emu"), "none")
    assert "few training images of dog (19), 1000" in line


def test_classes_that_are_large_enough_need_no_word() -> None:
    assert small_class_remarks(torch.tensor([0] * 500 + [1] * 10), ("cat", "dog"), "none") == []


def test_the_sampler_is_for_methods_with_epochs() -> None:
    with pytest.raises(ConfigError, match=r"--method linear takes --balance loss"):
        TuneConfig(task="digits", method="linear", balance="sampler").resolve(Recipe(backbone="toy"))


def test_a_balanced_probe_is_scikit_learns_own(toy: Toy) -> None:
    model, images = toy(num_classes=3), random_images(40, 3)
    keep = [i for i, label in enumerate(images.labels.tolist()) if label == 0 or i % 4 == 0]
    train = Images(
        images.pixels[keep], images.labels[keep], [images.examples[i] for i in keep] if images.examples else []
    )
    features = predict(toy(num_classes=0), train, PREPROCESS, "cpu").numpy()
    rows = fit_probe(model, train, images, PREPROCESS, "cpu", balance="loss", select="balanced")
    best = max(rows, key=lambda row: (row["validation_balanced_accuracy"], -row["c"]))
    scaled = (features - features.mean(0)) / features.std(0)
    expected = LogisticRegression(C=best["c"], class_weight="balanced", max_iter=20_000, tol=1e-6)
    expected.fit(scaled, train.labels.numpy())
    given = predict(model, train, PREPROCESS, "cpu").softmax(1).numpy()
    np.testing.assert_allclose(given, expected.predict_proba(scaled), atol=1e-3)
