from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from mosa_deploy.adapters.probe import Probe
from mosa_deploy.errors import TrainingError
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy
from training import attentive
from training.attentive import Patches, fit_attentive
from training.loop import Row, predict
from training.recipe import Recipe

RECIPE = Recipe(backbone="toy", epochs=6, lr=2e-2, batch_size=16)


def fitted(toy: Toy, **changes: Any) -> tuple[Probe, list[Row]]:
    torch.manual_seed(0)
    probe = Probe(toy(depth=1), "attended", 3)
    recipe = Recipe(**{**vars(RECIPE), **changes})
    return probe, fit_attentive(probe, random_images(48, 3), random_images(24, 3, seed=1), PREPROCESS, recipe, 0, "cpu")


def test_the_best_epoch_on_validation_is_kept(toy: Toy) -> None:
    probe, rows = fitted(toy)
    held_out = random_images(24, 3, seed=1)
    logits = predict(probe, held_out, PREPROCESS, "cpu").numpy()
    best = max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    labels = held_out.labels.numpy()
    assert (logits.argmax(1) == labels).mean() == pytest.approx(best["validation_accuracy"])
    loss = -log_softmax(logits, axis=1)[np.arange(24), labels].mean()
    assert loss == pytest.approx(best["validation_loss"], abs=1e-3)
    assert rows[-1]["cross_entropy"] < rows[0]["cross_entropy"]


def test_query_and_head_are_trained_and_the_backbone_is_not(toy: Toy) -> None:
    probe, _ = fitted(toy)
    assert probe.query is not None
    assert probe.query.abs().min() > 0
    frozen = toy(depth=1, num_classes=0).state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in probe.backbone.state_dict().items())


def test_patches_that_would_need_too_much_memory_are_computed_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    _, kept = fitted(toy)
    monkeypatch.setattr(attentive, "KEPT_BYTES", 100)
    probe, again = fitted(toy)
    assert Patches.of(probe, random_images(4, 3), PREPROCESS, "cpu").kept is None
    for one, other in zip(kept, again, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_a_loss_that_is_not_finite_ends_in_one_line(toy: Toy) -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan at epoch \d+: lower --lr \(now 1e\+30\)"):
        fitted(toy, lr=1e30)
