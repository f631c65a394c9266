import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mosa_deploy.adapters.attach import attach
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy, perturb
from training.data import whole
from training.devices import Computing
from training.loop import Trainer
from training.recipe import Recipe, adapter_config
from training.tune_options import ExecutionOptions

RECIPE = Recipe(backbone="toy", bottleneck=4, experts=3, dropout=0.0, epochs=3, batch_size=8, lr=1e-2)

IMAGES = dataclasses.replace(random_images(7, 3), labels=torch.tensor([0, 0, 0, 0, 1, 1, 2]))


def gradients(toy: Toy, accumulate: int, **changes: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses and the gradients of one step in this many parts."""
    recipe = dataclasses.replace(RECIPE, **changes)
    model = attach(toy(num_classes=3), adapter_config(recipe))
    perturb(model)
    execution = ExecutionOptions(accumulate=accumulate)
    trainer = Trainer(model, IMAGES, IMAGES, PREPROCESS, recipe, 0, Computing(execution=execution))
    trainer.model.train()
    losses, count = trainer.step(whole(IMAGES))
    assert count == len(IMAGES)
    return losses, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("accumulate", [2, 3, 7, 20])
@pytest.mark.parametrize(
    "changes",
    [{}, {"activate": "balanced"}, {"passes": 1, "consistency": 0.0}, {"balance": "loss"}],
    ids=["per-pass", "balanced", "one pass", "weighted classes"],
)
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(toy: Toy, accumulate: int, changes: dict[str, Any]) -> None:
    (losses, expected), (parts, found) = (gradients(toy, each, **changes) for each in (1, accumulate))
    torch.testing.assert_close(parts, losses)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_batch_of_which_nothing_can_be_read_changes_nothing(toy: Toy) -> None:
    model = attach(toy(num_classes=3), adapter_config(RECIPE))
    recipe = dataclasses.replace(RECIPE, ema=0.5)
    trainer = Trainer(model, IMAGES, IMAGES, PREPROCESS, recipe, 0)
    batch = whole(IMAGES)
    trainer.step(batch)
    before = [each.clone() for each in (*trainer.average.parameters, *trainer.average.averages)]
    losses, count = trainer.step(batch._replace(pixels=batch.pixels[:0], labels=batch.labels[:0]))
    assert count == 0
    assert losses.tolist() == [0, 0]
    after = (*trainer.average.parameters, *trainer.average.averages)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_gradient_beyond_the_norm_is_scaled_to_it_after_all_parts_are_summed(toy: Toy) -> None:
    (_, free), (_, cut), (_, parts), (_, loose) = (
        gradients(toy, accumulate, clip_grad=norm) for accumulate, norm in ((1, 0.0), (1, 0.01), (3, 0.01), (1, 1e6))
    )
    norm = torch.stack([gradient.norm() for gradient in free.values()]).norm()
    assert norm > 0.01
    for name, gradient in free.items():
        torch.testing.assert_close(cut[name], gradient * (0.01 / norm), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(parts[name], cut[name], rtol=1e-4, atol=1e-7)
        assert torch.equal(loose[name], gradient)
