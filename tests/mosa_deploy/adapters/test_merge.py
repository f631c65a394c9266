import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mosa_deploy.adapters.attach import adapters, attach, split_layers
from mosa_deploy.adapters.bottleneck import Bottleneck
from mosa_deploy.adapters.merge import merge
from mosa_deploy.adapters.split_linear import SplitLinear
from mosa_deploy.bundles.adapter_config import AdapterConfig, Share
from mosa_deploy.errors import BundleError
from tests.support.models import perturb

Toy = Callable[..., VisionTransformer]


def tuned(toy: Toy, share: Share = "none", experts: int = 3) -> VisionTransformer:
    model = attach(toy(), AdapterConfig(bottleneck=4, experts=experts, share=share, scale=1.0))
    perturb(model)
    return model.double().eval()


def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, dtype=torch.float64)


def test_merged_weights_are_the_mean_of_the_experts(toy: Toy) -> None:
    model = tuned(toy)
    split = copy.deepcopy(model)
    merge(model)
    for before, after in zip(adapters(split), adapters(model), strict=True):
        assert isinstance(before, Bottleneck)
        assert isinstance(after, Bottleneck)
        for part, dense in ((before.down, after.down), (before.up, after.up)):
            assert isinstance(part, SplitLinear)
            experts = [(part.base + part.weight * (part.owner == k)).detach().numpy() for k in range(3)]
            np.testing.assert_allclose(dense.weight.detach().numpy(), np.mean(experts, axis=0), rtol=0, atol=1e-14)
            bias = part.bias.detach().numpy().mean(axis=0)
            np.testing.assert_allclose(dense.bias.detach().numpy(), bias, rtol=0, atol=1e-14)


@pytest.mark.parametrize("share", ["down", "up", "none"])
def test_merging_keeps_the_logits_that_the_adapters_made(toy: Toy, share: Share) -> None:
    model, x = tuned(toy, share), images()
    before, plain = model(x), toy().double()(x)
    assert (before - plain).abs().max() > 1e-2
    merged = merge(model)
    assert merged is model
    assert not split_layers(merged)
    assert (merged(x) - before).abs().max() < 1e-13


def test_merged_model_answers_the_same_in_training_mode(toy: Toy) -> None:
    model = merge(tuned(toy))
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    x = images()
    assert torch.equal(model.train()(x), model.eval()(x))


def test_merging_again_changes_nothing(toy: Toy) -> None:
    once = merge(tuned(toy))
    twice = merge(copy.deepcopy(once))
    assert once.state_dict().keys() == twice.state_dict().keys()
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name])


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_name_and_nothing_is_merged(toy: Toy, odd: float) -> None:
    model = tuned(toy)
    with torch.no_grad():
        model.get_parameter("blocks.1.adapter.up.weight")[2, 1] = odd
    fault = r"^blocks\.1\.adapter\.up\.weight holds NaN or infinity: tune again with a lower --lr$"
    with pytest.raises(BundleError, match=fault):
        merge(model)
    assert len(split_layers(model)) == 4
