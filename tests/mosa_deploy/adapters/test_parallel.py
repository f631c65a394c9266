import copy
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn

from mosa_deploy.adapters.parallel import ParallelAdapter, SplitLinear
from mosa_deploy.bundles.adapter_config import AdapterConfig, Share

EXPERTS = 3
CONFIG = AdapterConfig(experts=EXPERTS)


@pytest.fixture
def layer() -> SplitLinear:
    """A split projection 4 -> 5 in float64, each of its tensors away from where it starts."""
    torch.manual_seed(0)
    split = SplitLinear.from_base(nn.Linear(4, 5), CONFIG, torch.Generator().manual_seed(1)).double()
    for parameter in split.parameters():
        nn.init.normal_(parameter)
    return split


def numpy_expert(layer: SplitLinear, k: int, x: Tensor) -> NDArray[np.float64]:
    """x (W0 + Delta * [owner == k])^T + b_k, entry by entry."""
    weight = layer.base.numpy().copy()
    for i, j in np.ndindex(weight.shape):
        if layer.owner[i, j].item() == k:
            weight[i, j] += layer.weight[i, j].item()
    return np.asarray(x.numpy() @ weight.T + layer.bias[k].detach().numpy())


def batch(rows: int) -> Tensor:
    return torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def new_adapter(config: AdapterConfig, act: nn.Module | None = None, embed_dim: int = 6) -> ParallelAdapter:
    return ParallelAdapter(embed_dim, config, act or nn.GELU(), 1e-6, torch.Generator().manual_seed(0))


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


def test_merge_scale_of_the_settings_reaches_the_projection() -> None:
    config = AdapterConfig(experts=4, share="none", merge_scale=0.6)
    adapter = new_adapter(config).split_(config, torch.Generator())
    assert [part.merge_scale for part in adapter.modules() if isinstance(part, SplitLinear)] == [0.6, 0.6]
    assert SplitLinear.from_base(nn.Linear(4, 5), CONFIG, torch.Generator()).merge_scale == pytest.approx(1 / EXPERTS)


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


def test_adapter_is_the_formula_of_the_paper() -> None:
    adapter = new_adapter(AdapterConfig(bottleneck=2, scale=0.3)).double().eval()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    h = torch.randn(2, 3, 6, dtype=torch.float64)
    value = {name: parameter.detach().numpy() for name, parameter in adapter.named_parameters()}
    x = h.numpy() - h.numpy().mean(-1, keepdims=True)
    normal = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * value["norm.weight"] + value["norm.bias"]
    z = normal @ value["down.weight"].T + value["down.bias"]
    gelu = z * (1 + special.erf(z / math.sqrt(2))) / 2
    expected = 0.3 * (gelu @ value["up.weight"].T + value["up.bias"])
    np.testing.assert_allclose(adapter(h).detach().numpy(), expected, rtol=0, atol=1e-12)


def test_dropout_acts_on_the_activations_in_training_only() -> None:
    adapter = new_adapter(AdapterConfig(bottleneck=64, dropout=0.5, scale=1.0))
    nn.init.ones_(adapter.up.weight)
    nn.init.zeros_(adapter.down.weight)
    nn.init.constant_(adapter.down.bias, 10.0)
    h = torch.randn(1, 50, 6)
    assert adapter.eval()(h).unique().tolist() == [640.0]
    torch.manual_seed(0)
    kept = adapter.train()(h)[0, :, 0] / 20
    assert kept.mean().item() == pytest.approx(32, abs=2)
    assert kept.std().item() == pytest.approx(4, abs=1.5)


@pytest.mark.parametrize("share", ["down", "up", "none"])
def test_a_new_adapter_adds_nothing_whoever_is_drawn(share: Share) -> None:
    config = AdapterConfig(bottleneck=4, share=share)
    adapter = new_adapter(config).split_(config, torch.Generator().manual_seed(0)).train()
    assert not adapter(torch.randn(2, 3, 6)).any()


def test_down_starts_kaiming_uniform_with_a_of_sqrt_5() -> None:
    weight = new_adapter(AdapterConfig(bottleneck=64), embed_dim=256).down.weight.detach().numpy()
    bound = 1 / math.sqrt(256)
    assert np.abs(weight).max() <= bound
    assert stats.kstest(weight.flatten(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("share", "split"), [("down", {"up"}), ("up", {"down"}), ("none", {"down", "up"})])
def test_share_decides_which_projection_is_split(share: Share, split: set[str]) -> None:
    config = AdapterConfig(bottleneck=4, share=share)
    adapter = new_adapter(config).split_(config, torch.Generator())
    assert {name for name in ("down", "up") if isinstance(getattr(adapter, name), SplitLinear)} == split
    assert {name for name, part in adapter.merge_().named_modules() if type(part) is nn.Linear} == {"down", "up"}


def test_owner_maps_of_both_projections_are_drawn_independently() -> None:
    config = AdapterConfig(bottleneck=32, share="none")
    adapter = new_adapter(config, embed_dim=32).split_(config, torch.Generator().manual_seed(0))
    assert isinstance(adapter.down, SplitLinear)
    assert isinstance(adapter.up, SplitLinear)
    for up in (adapter.up.owner, adapter.up.owner.T):
        assert (adapter.down.owner == up).double().mean().item() == pytest.approx(0.25, abs=0.05)


def test_one_expert_learns_exactly_as_the_dense_adapter() -> None:
    config = AdapterConfig(bottleneck=4, experts=1, share="none", dropout=0.0)
    dense = new_adapter(config).double().train()
    alone = copy.deepcopy(dense).split_(config, torch.Generator())
    h, target = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    for adapter in (dense, alone):
        optimiser = torch.optim.SGD(adapter.parameters(), lr=1.0)
        for _ in range(3):
            optimiser.zero_grad()
            (adapter(h) - target).square().sum().backward()
            optimiser.step()
    assert dense(h).abs().max() > 0.1
    torch.testing.assert_close(alone(h), dense(h), rtol=0, atol=1e-12)
