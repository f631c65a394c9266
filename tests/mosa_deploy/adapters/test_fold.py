import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import RmsNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mosa_deploy.adapters.attach import AdaptedBlock, adapters, attach
from mosa_deploy.adapters.fold import fold, widened_ratio
from mosa_deploy.adapters.merge import merge
from mosa_deploy.adapters.parallel import ParallelAdapter
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.errors import BackboneError
from tests.support.models import perturb

Toy = Callable[..., VisionTransformer]

WIDTH, HIDDEN, BOTTLENECK = 12, 48, 5
SHAPE: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": WIDTH,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "average pool": {"class_token": False, "global_pool": "avg"},
    "layer scale": {"init_values": 0.3},
    "registers": {"reg_tokens": 2},
    "normalised queries": {"qk_norm": True},
    "no bias of qkv": {"qkv_bias": False},
    "norm before blocks": {"pre_norm": True},
    "other activation": {"act_layer": nn.SiLU},
    "other eps": {"norm_layer": functools.partial(nn.LayerNorm, eps=0.01)},
}


def merged(toy: Toy, **kwargs: Any) -> VisionTransformer:
    model = attach(toy(**kwargs), AdapterConfig(bottleneck=BOTTLENECK, experts=3, share="none", scale=0.7))
    perturb(model)
    return merge(model).double().eval()


def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, dtype=torch.float64)


def block_of(model: VisionTransformer, i: int) -> Block:
    block = model.blocks[i]
    assert isinstance(block, Block)
    return block


@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS)
def test_folding_is_exact_and_loads_strictly_into_timms_own_class(toy: Toy, kwargs: dict[str, Any]) -> None:
    model, x = merged(toy, **kwargs), images()
    adapted, plain = model(x), toy(**kwargs).double()(x)
    assert (adapted - plain).abs().max() > 1e-2
    wider = VisionTransformer(**SHAPE, **kwargs, mlp_ratio=widened_ratio(HIDDEN + BOTTLENECK, WIDTH)).double().eval()
    wider.load_state_dict(fold(model).state_dict(), strict=True)
    assert (wider(x) - adapted).abs().max() < 1e-12


def test_folding_is_exact_before_an_attention_pool(toy: Toy) -> None:
    model, x = merged(toy, global_pool="map"), images()
    assert (fold(model)(x) - model(x)).abs().max() < 1e-12


def test_folded_weights_are_those_of_the_formula(toy: Toy) -> None:
    model = merged(toy, init_values=0.3)
    adapted = model.blocks[1]
    assert isinstance(adapted, AdaptedBlock)
    v = {name: value.detach().numpy() for name, value in adapted.named_parameters()}
    g2, be2, ls2 = v["block.norm2.weight"], v["block.norm2.bias"], v["block.ls2.gamma"]
    ga, bea, s = v["adapter.norm.weight"], v["adapter.norm.bias"], 0.7
    w1, w2, down, up = (
        v[f"{name}.weight"] for name in ("block.mlp.fc1", "block.mlp.fc2", "adapter.down", "adapter.up")
    )
    b1, b2, d, u = (v[f"{name}.bias"] for name in ("block.mlp.fc1", "block.mlp.fc2", "adapter.down", "adapter.up"))
    mlp = block_of(fold(model), 1).mlp.state_dict()
    expected = {
        "fc1.weight": np.vstack([w1 @ np.diag(g2), down @ np.diag(ga)]),
        "fc1.bias": np.concatenate([b1 + w1 @ be2, d + down @ bea]),
        "fc2.weight": np.hstack([np.diag(ls2) @ w2, s * up]),
        "fc2.bias": ls2 * b2 + s * u,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(mlp[name].numpy(), value, rtol=0, atol=1e-14)


def test_norm2_and_layer_scale_become_the_identity(toy: Toy) -> None:
    state = fold(merged(toy, init_values=0.3)).state_dict()
    for i in range(2):
        assert state[f"blocks.{i}.norm2.weight"].unique().tolist() == [1.0]
        assert state[f"blocks.{i}.norm2.bias"].unique().tolist() == [0.0]
        assert state[f"blocks.{i}.ls2.gamma"].unique().tolist() == [1.0]
        assert not (state[f"blocks.{i}.ls1.gamma"] == 1.0).any()


def test_only_the_ffn_and_its_scale_change(toy: Toy) -> None:
    before, after = toy(init_values=0.3).double().state_dict(), fold(merged(toy, init_values=0.3)).state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    parts = (
        "norm2.weight",
        "norm2.bias",
        "mlp.fc1.weight",
        "mlp.fc1.bias",
        "mlp.fc2.weight",
        "mlp.fc2.bias",
        "ls2.gamma",
    )
    assert before.keys() == after.keys()
    assert changed == {f"blocks.{i}.{part}" for i in range(2) for part in parts}


def test_zeros_in_norm2s_weight_are_harmless(toy: Toy) -> None:
    model, x = merged(toy), images()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm2.weight"):
                parameter[::2] = 0.0
    assert (fold(model)(x) - model(x)).abs().max() < 1e-12


def test_backbone_rows_are_the_same_for_every_task(toy: Toy) -> None:
    first = fold(merged(toy))
    other = merged(toy)
    perturb(other)
    mlps = block_of(first, 0).mlp.state_dict(), block_of(fold(other), 0).mlp.state_dict()
    assert torch.equal(*(mlp["fc1.weight"][:HIDDEN] for mlp in mlps))
    assert torch.equal(*(mlp["fc2.weight"][:, :HIDDEN] for mlp in mlps))
    assert not torch.equal(*(mlp["fc1.weight"][HIDDEN:] for mlp in mlps))


def test_a_split_adapter_is_refused(toy: Toy) -> None:
    model = attach(toy(), AdapterConfig(bottleneck=BOTTLENECK))
    with pytest.raises(BackboneError, match=r"^blocks\.0: the adapter is still split: merge before folding$"):
        fold(model)


def test_an_adapter_of_another_eps_or_activation_is_refused(toy: Toy) -> None:
    model = merged(toy)
    second = adapters(model)[1]
    assert isinstance(second, ParallelAdapter)
    second.norm.eps = 1e-3
    with pytest.raises(BackboneError, match=r"^blocks\.1: the adapter's eps 0.001 is not norm2's 1e-06$"):
        fold(model)
    adapters(model)[0].act = nn.ReLU()
    with pytest.raises(BackboneError, match=r"^blocks\.0: the adapter's activation ReLU\(\) is not the FFN's GELU"):
        fold(model)


def test_an_activation_that_only_reads_the_same_is_refused(toy: Toy) -> None:
    class Gate(nn.Module):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.slope = slope

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.slope * x)

    model = merged(toy, act_layer=functools.partial(Gate, 1.0))
    adapters(model)[1].act = Gate(2.0)
    with pytest.raises(
        BackboneError, match=r"^blocks\.1: the adapter's activation Gate\(\) is not the FFN's Gate\(\)$"
    ):
        fold(model)


def test_a_block_that_was_changed_after_attaching_is_refused(toy: Toy) -> None:
    model = merged(toy)
    adapted = model.blocks[1]
    assert isinstance(adapted, AdaptedBlock)
    adapted.block.add_module("norm2", RmsNorm(WIDTH))
    with pytest.raises(BackboneError, match=r"blocks\.1: norm2 is RmsNorm, not LayerNorm"):
        fold(model)


def test_folding_leaves_the_merged_model_as_it_was(toy: Toy) -> None:
    model = merged(toy)
    before = copy.deepcopy(model.state_dict())
    folded = fold(model)
    for parameter in folded.parameters():
        nn.init.zeros_(parameter)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_plain_model_folds_to_itself(toy: Toy) -> None:
    model = toy(init_values=0.3)
    folded = fold(model)
    assert folded is not model
    assert folded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, folded.state_dict()[name]) for name, value in model.state_dict().items())


def test_widened_ratio_survives_timms_rounding() -> None:
    for width in (*range(1, 200), 384, 768, 1024, 1152, 1408):
        for hidden in (width, 3 * width, 4 * width, int(width * 3.7362)):
            for bottleneck in (1, 2, 7, 16, 63, 64, 255):
                assert int(width * widened_ratio(hidden + bottleneck, width)) == hidden + bottleneck
