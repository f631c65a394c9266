import copy
import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

from mosa_deploy.adapters.parallel import ParallelAdapter
from mosa_deploy.bundles.adapter_config import AdapterConfig, Share


def new_adapter(config: AdapterConfig, act: nn.Module | None = None, embed_dim: int = 6) -> ParallelAdapter:
    return ParallelAdapter(embed_dim, config, act or nn.GELU(), 1e-6, torch.Generator().manual_seed(0))


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
def test_a_new_adapter_adds_nothing_whichever_expert_is_drawn(share: Share) -> None:
    config = AdapterConfig(bottleneck=4, share=share)
    adapter = new_adapter(config).split_(config, torch.Generator().manual_seed(0)).train()
    assert not adapter(torch.randn(2, 3, 6)).any()


def test_down_starts_kaiming_uniform_with_a_of_sqrt_5() -> None:
    weight = new_adapter(AdapterConfig(bottleneck=64), embed_dim=256).down.weight.detach().numpy()
    bound = 1 / math.sqrt(256)
    assert np.abs(weight).max() <= bound
    assert stats.kstest(weight.flatten(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


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
