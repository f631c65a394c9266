import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from mosa_deploy.adapters.split_linear import SplitLinear, split
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.errors import ConfigError

EXPERTS = 3
CONFIG = AdapterConfig(experts=EXPERTS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_owner_map_is_uint8_of_the_projection_shape() -> None:
    owner = split((6, 5), 4, generator())
    assert owner.dtype == torch.uint8
    assert owner.shape == (6, 5)


@pytest.mark.parametrize(("shape", "experts"), [((3, 4), 4), ((7, 3), 4), ((1, 5), 5), ((16, 192), 7), ((2, 200), 256)])
def test_parts_cover_all_entries_and_differ_by_at_most_one(shape: tuple[int, int], experts: int) -> None:
    counts = torch.bincount(split(shape, experts, generator()).flatten().int(), minlength=experts)
    assert len(counts) == experts
    assert counts.sum() == shape[0] * shape[1]
    assert counts.max() - counts.min() <= 1


def test_same_seed_gives_the_same_map_and_another_seed_another() -> None:
    first, again, other = (split((8, 8), 4, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_owners_are_scattered_not_contiguous() -> None:
    owner = split((64, 64), 4, generator())
    by_row = (owner[:, 1:] != owner[:, :-1]).float().mean().item()
    by_column = (owner[1:] != owner[:-1]).float().mean().item()
    assert by_row == pytest.approx(0.75, abs=0.03)
    assert by_column == pytest.approx(0.75, abs=0.03)


def test_every_entry_is_as_likely_to_go_to_any_expert() -> None:
    maps = torch.stack([split((2, 3), 3, generator(seed)) for seed in range(600)]).flatten(1)
    for entry in maps.T:
        assert stats.chisquare(torch.bincount(entry.int(), minlength=3).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("shape", "experts", "most"), [((2, 2), 5, 4), ((64, 64), 257, 256), ((2, 2), 0, 4)])
def test_experts_that_do_not_fit_are_refused_with_the_range(shape: tuple[int, int], experts: int, most: int) -> None:
    with pytest.raises(ConfigError, match=rf"--experts {experts} does not fit a .*choose 1 to {most}$"):
        split(shape, experts, generator())


@pytest.fixture
def layer() -> SplitLinear:
    """A split projection 4 -> 5 in float64, each of its tensors away from where it starts."""
    torch.manual_seed(0)
    layer = SplitLinear.from_base(nn.Linear(4, 5), CONFIG, torch.Generator().manual_seed(1)).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def numpy_expert(layer: SplitLinear, k: int, x: Tensor) -> NDArray[np.float64]:
    """x (W0 + Delta * [owner == k])^T + b_k, entry by entry."""
    weight = layer.base.numpy().copy()
    for i, j in np.ndindex(weight.shape):
        if layer.owner[i, j].item() == k:
            weight[i, j] += layer.weight[i, j].item()
    return np.asarray(x.numpy() @ weight.T + layer.bias[k].detach().numpy())


def batch(rows: int) -> Tensor:
    return torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_an_expert_adds_only_the_entries_it_owns(layer: SplitLinear) -> None:
    x = batch(7)
    for k in range(EXPERTS):
        weight, bias = layer.expert(k)
        found = nn.functional.linear(x, weight, bias)
        np.testing.assert_allclose(found.detach().numpy(), numpy_expert(layer, k, x), rtol=0, atol=1e-13)


def test_evaluation_is_the_mean_of_all_experts(layer: SplitLinear) -> None:
    x = batch(7)
    mean = np.mean([numpy_expert(layer, k, x) for k in range(EXPERTS)], axis=0)
    np.testing.assert_allclose(layer.eval()(x).detach().numpy(), mean, rtol=0, atol=1e-13)


def test_evaluation_draws_nothing(layer: SplitLinear) -> None:
    before = layer.generator.get_state()
    layer.eval()(batch(2))
    assert torch.equal(layer.generator.get_state(), before)


def test_each_part_of_a_training_batch_has_its_own_draw(layer: SplitLinear) -> None:
    layer.passes = 6
    x = batch(12)
    found = layer.train()(x).detach().numpy()
    drawn = []
    for part in range(6):
        rows = slice(2 * part, 2 * part + 2)
        fits = [k for k in range(EXPERTS) if np.allclose(found[rows], numpy_expert(layer, k, x[rows]), atol=1e-12)]
        drawn += fits
    assert len(drawn) == 6
    assert len(set(drawn)) > 1


@pytest.fixture
def balanced(layer: SplitLinear) -> SplitLinear:
    """The same layer, which gives all experts to every pass of a batch."""
    layer.activate = "balanced"
    return layer.train()


def experts_seen(layer: SplitLinear, x: Tensor, found: Tensor) -> list[int]:
    """The expert that each image of a batch met."""
    expected = [numpy_expert(layer, k, x) for k in range(EXPERTS)]
    fits = [[k for k in range(EXPERTS) if np.allclose(row, expected[k][i], atol=1e-12)] for i, row in enumerate(found)]
    assert all(len(each) == 1 for each in fits)
    return [each[0] for each in fits]


def test_a_balanced_pass_gives_every_expert_an_equal_group_of_neighbours(balanced: SplitLinear) -> None:
    balanced.passes = 2
    x = batch(14)
    seen = experts_seen(balanced, x, balanced(x).detach())
    for part in (seen[:7], seen[7:]):
        order = list(dict.fromkeys(part))
        assert sorted(order) == [0, 1, 2]
        assert part == [k for k, size in zip(order, (3, 2, 2), strict=True) for _ in range(size)]


def test_a_balanced_batch_smaller_than_the_experts_draws_without_replacement(balanced: SplitLinear) -> None:
    x = batch(2)
    drawn = {tuple(experts_seen(balanced, x, balanced(x).detach())) for _ in range(60)}
    assert drawn == {(i, j) for i in range(EXPERTS) for j in range(EXPERTS) if i != j}


@pytest.mark.parametrize("images", [1, 2, 3, 7])
def test_over_all_orders_a_balanced_batch_is_the_merged_layer(balanced: SplitLinear, images: int) -> None:
    x = batch(images)
    outputs = [balanced.by_experts(x, order).detach().numpy() for order in itertools.permutations(range(EXPERTS))]
    expected = np.mean([numpy_expert(balanced, k, x) for k in range(EXPERTS)], axis=0)
    np.testing.assert_allclose(np.mean(outputs, axis=0), expected, rtol=0, atol=1e-13)


def test_balanced_orders_are_uniform(balanced: SplitLinear) -> None:
    counts = Counter(tuple(balanced.draw()) for _ in range(3000))
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_a_balanced_step_teaches_every_expert(balanced: SplitLinear) -> None:
    balanced(batch(3)).square().sum().backward()
    assert balanced.weight.grad is not None
    assert (balanced.weight.grad != 0).all()


def test_draws_neither_read_nor_move_the_global_generator(layer: SplitLinear) -> None:
    x, layer.passes = batch(8), 8
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        layer.generator.manual_seed(7)
        outputs.append(layer.train()(x))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(outputs[0], outputs[1])


def test_draws_are_uniform(layer: SplitLinear) -> None:
    layer.passes = 3000
    with torch.no_grad():
        layer.bias.copy_(torch.arange(EXPERTS)[:, None].expand_as(layer.bias))
        drawn = layer.train()(torch.zeros(3000, 4, dtype=torch.float64))[:, 0]
    counts = torch.bincount(drawn.int(), minlength=EXPERTS)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_gradient_reaches_only_the_active_experts_entries_and_bias(layer: SplitLinear) -> None:
    x = batch(3)
    output = layer.train()(x)
    (k,) = (k for k in range(EXPERTS) if np.allclose(output.detach().numpy(), numpy_expert(layer, k, x)))
    output.square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    assert torch.equal(layer.weight.grad != 0, layer.owner == k)
    assert layer.bias.grad.any(dim=1).tolist() == [i == k for i in range(EXPERTS)]


def test_the_initial_value_is_frozen_and_every_expert_starts_from_it() -> None:
    linear = nn.Linear(4, 5)
    layer = SplitLinear.from_base(linear, CONFIG, torch.Generator().manual_seed(1))
    x = torch.randn(2, 4)
    for k in range(EXPERTS):
        assert torch.equal(nn.functional.linear(x, *layer.expert(k)), linear(x))
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


def test_merge_scale_stands_in_for_the_expectation(layer: SplitLinear) -> None:
    layer.merge_scale = 0.7
    x = batch(7)
    weight = layer.base.numpy() + 0.7 * layer.weight.detach().numpy()
    expected = x.numpy() @ weight.T + layer.bias.detach().numpy().mean(axis=0)
    np.testing.assert_allclose(layer.eval()(x).detach().numpy(), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(layer.merge()(x).detach().numpy(), expected, rtol=0, atol=1e-13)


def test_dense_training_uses_the_merged_weight_and_teaches_every_entry(layer: SplitLinear) -> None:
    layer.dense = True
    x = batch(6)
    output = layer.train()(x)
    np.testing.assert_array_equal(output.detach().numpy(), layer.eval()(x).detach().numpy())
    output.square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    assert (layer.weight.grad != 0).all()
    assert layer.bias.grad.any(dim=1).all()


def test_merged_projection_is_a_dense_layer_with_evaluations_output(layer: SplitLinear) -> None:
    x = batch(7)
    merged = layer.merge()
    assert type(merged) is nn.Linear
    np.testing.assert_allclose(merged(x).detach().numpy(), layer.eval()(x).detach().numpy(), rtol=0, atol=1e-13)
