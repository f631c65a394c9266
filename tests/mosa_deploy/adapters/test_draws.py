import itertools

import pytest
import torch
from torch import nn

from mosa_deploy.adapters.attach import attach, set_passes, split_layers
from mosa_deploy.adapters.draws import group_sizes, held_draws, place
from mosa_deploy.bundles.adapter_config import Activation, AdapterConfig
from tests.support.models import Toy, perturb

IMAGES = 7


@pytest.fixture(params=["per-pass", "balanced"])
def activate(request: pytest.FixtureRequest) -> Activation:
    found: Activation = request.param
    return found


@pytest.fixture
def model(toy: Toy, activate: Activation) -> nn.Module:
    """The toy in training, with experts that differ and nothing else that is random."""
    found = attach(toy(), AdapterConfig(bottleneck=4, experts=3, dropout=0.0, activate=activate))
    perturb(found)
    set_passes(found, 2)
    return found.train()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def two_passes(model: nn.Module, images: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """The logits (2, B, K) of images that stand at these places in their batch."""
    place(model, torch.arange(start, stop), IMAGES)
    logits: torch.Tensor = model(images[start:stop].repeat(2, 1, 1, 1)).detach()
    return logits.view(2, stop - start, -1)


def test_held_experts_are_the_same_in_every_forward_pass(model: nn.Module, images: torch.Tensor) -> None:
    with held_draws(model):
        first, second = (two_passes(model, images, 0, IMAGES) for _ in range(2))
    assert torch.equal(first, second)
    with held_draws(model):
        assert not torch.equal(two_passes(model, images, 0, IMAGES), first)


def test_an_image_has_the_expert_of_its_place_whatever_part_it_is_in(model: nn.Module, images: torch.Tensor) -> None:
    with held_draws(model):
        whole = two_passes(model, images, 0, IMAGES)
        for ends in ((0, 3, 7), (0, 1, 2, 5, 7)):
            parts = [two_passes(model, images, *ends_of_part) for ends_of_part in itertools.pairwise(ends)]
            torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


def test_after_a_step_every_forward_pass_draws_again(model: nn.Module, images: torch.Tensor) -> None:
    with held_draws(model):
        two_passes(model, images, 0, 3)
    drawn = []
    for _ in range(20):
        model(images.repeat(2, 1, 1, 1))
        drawn.append(tuple(split_layers(model)[0].drawn))
    assert len(set(drawn)) > 1


def test_a_dense_layer_holds_no_draw(model: nn.Module) -> None:
    layer, *others = split_layers(model)
    layer.dense, before = True, layer.generator.get_state()
    with held_draws(model):
        assert not layer.held
        assert all(other.held for other in others)
    assert torch.equal(layer.generator.get_state(), before)


def test_groups_are_cut_as_a_whole_batch_is() -> None:
    for total, groups in itertools.product(range(1, 9), range(1, 5)):
        members = [set(group.tolist()) for group in torch.arange(total).tensor_split(groups)]
        for start, stop in itertools.combinations(range(total + 1), 2):
            expected = [len(group & set(range(start, stop))) for group in members]
            assert group_sizes(torch.arange(start, stop), total, groups) == expected
