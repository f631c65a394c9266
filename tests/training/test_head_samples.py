"""Dropout before the head, with several samples for one pass through the backbone (arXiv 1905.09788)."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from mosa_deploy.adapters.attach import attach, task_state
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Weights, load_backbone
from tests.support import swin
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy, perturb
from training.data import whole
from training.head_samples import HeadDropout
from training.loop import Trainer, predict
from training.recipe import Recipe, adapter_config

RECIPE = Recipe(backbone="toy", bottleneck=4, experts=3, dropout=0.0, epochs=1, batch_size=6, consistency=0.5)

IMAGES = random_images(6, 3)
SAMPLES = 4


def make_trainer(model: Transformer, head_dropout: float, head_samples: int) -> Trainer:
    recipe = dataclasses.replace(RECIPE, head_dropout=head_dropout, head_samples=head_samples)
    perturb(attach(model, adapter_config(recipe)))
    torch.manual_seed(0)
    trainer = Trainer(model, IMAGES, IMAGES, PREPROCESS, recipe, 0)
    trainer.model.train()
    return trainer


def test_losses_are_the_means_over_the_samples(toy: Toy) -> None:
    trainer = make_trainer(toy(num_classes=3), 0.5, SAMPLES)
    seen: list[Tensor] = []
    trainer.model.register_forward_hook(lambda *args: seen.append(args[2].detach().double()))
    losses, count = trainer.step(whole(IMAGES))
    logits = seen[0].reshape(2, 6, SAMPLES, 3).numpy()
    cross_entropy, consistency = [], []
    for m in range(SAMPLES):
        first, second = logits[0, :, m], logits[1, :, m]
        cross_entropy.append(-log_softmax(first, axis=1)[np.arange(6), IMAGES.labels].mean())
        p, q = softmax(first, axis=1), softmax(second, axis=1)
        consistency.append((rel_entr(p, q).sum(1).mean() + rel_entr(q, p).sum(1).mean()) / 2)
    assert count == 6
    np.testing.assert_allclose(losses, [np.mean(cross_entropy), np.mean(consistency)], rtol=1e-5)
    assert np.std(cross_entropy) > 1e-3


def test_all_samples_share_one_pass_through_the_blocks(toy: Toy) -> None:
    trainer = make_trainer(toy(num_classes=3), 0.5, SAMPLES)
    rows: list[int] = []
    for name in ("blocks.1", "head"):
        trainer.model.get_submodule(name).register_forward_hook(lambda *args: rows.append(len(args[2])))
    trainer.step(whole(IMAGES))
    assert rows == [12, 12 * SAMPLES]


def test_every_sample_drops_features_of_its_own() -> None:
    ones = torch.ones(50, 40)
    dropped = HeadDropout(0.25, 3).train()(ones).reshape(50, 3, 40)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(dropped[:, 0], dropped[:, 1])
    assert torch.equal(HeadDropout(0.25, 3).eval()(ones), ones)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_answers_and_what_is_saved_know_nothing_of_it(toy: Toy, kind: str) -> None:
    def model() -> Transformer:
        return toy(num_classes=3) if kind == "vit" else load_backbone(swin.NAME, Weights("random"), classes=3)

    plain, dropping = make_trainer(model(), 0.0, 1), make_trainer(model(), 0.9, SAMPLES)
    assert plain.model.state_dict().keys() == dropping.model.state_dict().keys()
    dropping.model.load_state_dict(plain.model.state_dict())
    images = IMAGES if kind == "vit" else dataclasses.replace(IMAGES, pixels=IMAGES.pixels.repeat(1, 2, 2, 1))
    found, expected = (predict(each.model, images, PREPROCESS, "cpu") for each in (dropping, plain))
    assert torch.equal(found, expected)
    assert dropping.model.train()(torch.zeros(2, 3, *images.pixels.shape[1:3])).shape == (2 * SAMPLES, 3)
    assert task_state(dropping.model).keys() == task_state(plain.model).keys()
