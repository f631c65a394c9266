"""Low-rank updates: the formulas W + s B A written out in float64, and the way from split to folded."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mosa_deploy.adapters.attach import adapters, attach, freeze, set_passes, split_layers, task_state
from mosa_deploy.adapters.fold import fold
from mosa_deploy.adapters.low_rank import LowRankLinear, LowRankUpdate
from mosa_deploy.adapters.merge import merge
from mosa_deploy.adapters.split_linear import SplitLinear
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import AdapterConfig, Target
from mosa_deploy.errors import BackboneError, BundleError, ConfigError
from tests.support.models import perturb

Toy = Callable[..., VisionTransformer]

CONFIG = AdapterConfig(bottleneck=3, experts=3, scale=0.5, style="low-rank", targets=("q", "v"))
WIDTH = 12


def images() -> Tensor:
    return torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    out: Tensor = model.eval()(images())
    return out


def tuned(toy: Toy, targets: tuple[Target, ...] = ("q", "v"), **kwargs: Any) -> VisionTransformer:
    """A toy with experts that are away from where they start, in float64."""
    config = AdapterConfig(**{**vars(CONFIG), "targets": targets, **kwargs})
    model = attach(toy(), config).double()
    perturb(model)
    return model


def test_new_updates_change_nothing(toy: Toy) -> None:
    torch.testing.assert_close(logits(attach(toy(), CONFIG).double()), logits(toy().double()), rtol=0, atol=1e-12)


def test_a_merged_update_is_s_b_a_in_the_rows_of_its_target(toy: Toy) -> None:
    model, plain = merge(tuned(toy)), toy().double()
    folded = fold(model).state_dict()
    for name in ("blocks.0.attn.qkv", "blocks.1.attn.qkv"):
        layer = model.get_submodule(name)
        assert isinstance(layer, LowRankLinear)
        q, v = (layer.adapter.updates()[target] for target in ("q", "v"))
        wanted = plain.get_parameter(f"{name}.weight").detach().numpy().copy()
        for update, rows in ((q, slice(0, WIDTH)), (v, slice(2 * WIDTH, 3 * WIDTH))):
            wanted[rows] += 0.5 * update.up.weight.detach().numpy() @ update.down.weight.detach().numpy()
        np.testing.assert_allclose(folded[f"{name}.weight"], wanted, rtol=0, atol=1e-14)
        x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
        bias = plain.get_parameter(f"{name}.bias").detach().numpy()
        np.testing.assert_allclose(layer(x).detach(), x.numpy() @ wanted.T + bias, rtol=0, atol=1e-13)


@pytest.mark.parametrize("targets", [("q", "v"), ("k",), ("qkv",), ("proj", "fc1", "fc2"), ("q", "qkv", "fc2")])
def test_a_low_rank_task_goes_the_whole_way_and_ends_in_timms_own_class(toy: Toy, targets: tuple[Target, ...]) -> None:
    split = tuned(toy, targets, share="none")
    expected = logits(split)
    assert (expected - logits(toy().double())).abs().max() > 1e-3
    merged = merge(copy.deepcopy(split))
    folded = fold(merged)
    plain = toy().double()
    plain.load_state_dict(folded.state_dict(), strict=True)
    for stage in (merged, folded, plain):
        torch.testing.assert_close(logits(stage), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits(merge(merged)), expected, rtol=0, atol=1e-12)


def test_b_is_split_a_is_shared_and_each_expert_owns_its_entries(toy: Toy) -> None:
    model = tuned(toy)
    for update in adapters(model):
        assert isinstance(update, LowRankUpdate)
        assert isinstance(update.down, torch.nn.Linear)
        assert isinstance(update.up, SplitLinear)
        assert update.up.bias is None
        mean = np.mean([update.up.expert(k)[0].detach().numpy() for k in range(3)], axis=0)
        np.testing.assert_allclose(update.up.merge().weight.detach(), mean, rtol=0, atol=1e-14)
    owners = [update.up.owner for update in adapters(model) if isinstance(update.up, SplitLinear)]
    assert len(owners) == 4
    assert not any(torch.equal(owners[0], other) for other in owners[1:])


def test_training_draws_an_expert_for_each_target_and_moves_only_the_task(toy: Toy) -> None:
    model = attach(toy(), CONFIG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    freeze(model)
    set_passes(model, 2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(images().float()).square().sum().backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= {name for name in task_state(model) if not name.endswith((".base", ".owner"))}
    assert len(split_layers(model)) == 4
    for layer in split_layers(model):
        assert layer.weight.abs().max() > 0


def test_split_updates_are_not_folded(toy: Toy) -> None:
    with pytest.raises(BackboneError, match=r"^blocks\.0: the adapter is still split: merge before folding$"):
        fold(tuned(toy))


def test_an_update_that_is_not_finite_is_refused_by_name(toy: Toy) -> None:
    model = tuned(toy)
    with torch.no_grad():
        model.get_parameter("blocks.1.attn.qkv.adapter.v.up.weight")[0, 0] = torch.inf
    with pytest.raises(BundleError, match=r"^blocks\.1\.attn\.qkv\.adapter\.v\.up\.weight holds NaN or infinity"):
        merge(model)


def test_a_second_adapter_is_refused(toy: Toy) -> None:
    with pytest.raises(BackboneError, match="has adapters already"):
        attach(attach(toy(), CONFIG), AdapterConfig())


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"style": "low-rank"}, "targets none: low-rank adapters have some, each once"),
        ({"targets": ("q",)}, "targets q: low-rank adapters have some, each once"),
        ({"style": "low-rank", "targets": ("q", "q")}, "targets q, q: low-rank"),
        ({"style": "low-rank", "targets": ("key",)}, "unknown target 'key'; did you mean k"),
    ],
)
def test_targets_that_cannot_be_are_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        AdapterConfig(**settings)


def test_attaching_follows_the_seed(toy: Toy) -> None:
    first, again, other = (task_state(attach(toy(), CONFIG, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["blocks.0.attn.qkv.adapter.q.down.weight"], other["blocks.0.attn.qkv.adapter.q.down.weight"]
    )


def test_folded_shapes_are_the_backbones_own() -> None:
    model = load_backbone("vit_tiny_patch16_224", Weights("random"), 3, 32, depth=2, embed_dim=24, num_heads=3)
    attach(model, AdapterConfig(style="low-rank", targets=("q", "fc1")), split=False)
    perturb(model)
    own = timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, embed_dim=24, num_heads=3
    ).state_dict()
    assert {name: value.shape for name, value in fold(model).state_dict().items()} == {
        n: v.shape for n, v in own.items()
    }
