import numpy as np
import pytest
import torch
from torch import nn

from mosa_deploy.adapters.attach import adapters, attach
from mosa_deploy.adapters.split_linear import SplitLinear
from mosa_deploy.bundles.adapter_config import AdapterConfig
from tests.support.adamw import BETAS, DECAY, EPS, EXPERTS, RATES, adamw, gradients_of, split_layer, tuned
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy
from training.loop import Trainer
from training.recipe import Recipe, adapter_config
from training.reference import set_backbone_dropout, start_head


@pytest.fixture
def layer() -> SplitLinear:
    return split_layer()


def test_steps_are_counted_per_expert_and_undrawn_entries_go_on(layer: SplitLinear) -> None:
    owner = layer.owner.long().numpy()
    start, base, gradients = layer.weight.detach().numpy().copy(), layer.base.numpy(), gradients_of(owner)
    expected = adamw(start, base, owner, gradients, DECAY)
    np.testing.assert_allclose(tuned(layer.weight, layer, gradients, DECAY), expected, rtol=0, atol=1e-12)


def test_each_experts_bias_has_the_count_of_its_expert(layer: SplitLinear) -> None:
    owner = np.arange(EXPERTS)[:, None].repeat(5, 1)
    start, gradients = layer.bias.detach().numpy().copy(), gradients_of(owner)
    expected = adamw(start, np.zeros_like(start), owner, gradients, 0.0)
    np.testing.assert_allclose(tuned(layer.bias, layer, gradients, 0.0), expected, rtol=0, atol=1e-12)


def test_a_dense_parameter_is_trained_as_by_torchs_adamw(layer: SplitLinear) -> None:
    gradients = [np.random.default_rng(i).standard_normal((2, 3)) for i in range(len(RATES))]
    ours, theirs = (nn.Parameter(torch.ones(2, 3, dtype=torch.float64)) for _ in range(2))
    found = tuned(ours, layer, gradients, DECAY)
    optimiser = torch.optim.AdamW([theirs], betas=BETAS, eps=EPS, weight_decay=DECAY)
    for gradient, lr in zip(gradients, RATES, strict=True):
        theirs.grad = torch.from_numpy(gradient)
        optimiser.param_groups[0]["lr"] = lr
        optimiser.step()
    np.testing.assert_allclose(found, theirs.detach().numpy(), rtol=0, atol=1e-12)


def test_dropout_works_in_the_frozen_blocks_and_leaves_adapters_as_they_are(toy: Toy) -> None:
    model = attach(toy(), AdapterConfig(bottleneck=2, dropout=0.25))
    set_backbone_dropout(model, 0.5)
    own = {part for adapter in adapters(model) for part in adapter.modules()}
    found = {name: part.p for name, part in model.named_modules() if isinstance(part, nn.Dropout) and part not in own}
    assert {name.rpartition(".")[2] for name, p in found.items() if p} == {"pos_drop", "proj_drop", "drop1", "drop2"}
    assert {part.p for part in own if isinstance(part, nn.Dropout)} == {0.25}


def test_the_head_starts_by_its_outputs_with_rare_classes(toy: Toy) -> None:
    torch.manual_seed(0)
    model = toy(num_classes=500)
    start_head(model, -4.6)
    head = model.get_classifier()
    assert float(head.weight.detach().std()) == pytest.approx((2 / 500) ** 0.5, rel=0.02)
    assert head.bias.tolist() == pytest.approx([-4.6] * 500)


def test_the_first_epoch_has_no_learning_rate_and_each_epoch_one(toy: Toy) -> None:
    recipe = Recipe(backbone="toy", bottleneck=2, epochs=8, batch_size=8, lr=1e-2, recipe="reference")
    model = attach(toy(num_classes=3), adapter_config(recipe))
    trainer = Trainer(model, random_images(16, 3), random_images(3, 3), PREPROCESS, recipe, seed=0)
    trainer.fit(lambda trainer: None)
    cosine = [5e-3 * (1 + np.cos(np.pi * epoch / 8)) for epoch in range(2, 8)]
    np.testing.assert_allclose([row["lr"] for row in trainer.state.history], [0, 5e-3, *cosine])
