"""SSF and RepAdapter: the formulas written out in float64, and the way from a new adapter to timm's own class."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mosa_deploy.adapters.attach import adapters, attach, freeze, set_passes, split_layers, task_state
from mosa_deploy.adapters.fold import fold
from mosa_deploy.adapters.merge import merge
from mosa_deploy.adapters.repadapter import ReadingLayer
from mosa_deploy.adapters.ssf import ScaledLayer
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.errors import BackboneError, BundleError, ConfigError
from tests.support import eva
from tests.support.models import Toy, perturb

SSF = AdapterConfig(style="ssf", scale=1.0)
GROUPED = AdapterConfig(bottleneck=4, experts=1, style="repadapter", scale=0.5, groups=2)
SPLIT = AdapterConfig(bottleneck=3, experts=3, share="none", style="repadapter", scale=0.5)
LAST = AdapterConfig(style="ssf", scale=1.0, blocks=1)

every_style = pytest.mark.parametrize("config", [SSF, GROUPED, SPLIT, LAST], ids=["ssf", "groups", "experts", "last"])


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


@torch.no_grad()
def logits(model: nn.Module, dtype: torch.dtype = torch.float64) -> Tensor:
    out: Tensor = model.eval()(images(dtype))
    return out


def tuned(toy: Toy, config: AdapterConfig, **kwargs: Any) -> VisionTransformer:
    """A toy with adapters that are away from where they start, in float64."""
    model = attach(toy(**kwargs), config).double()
    perturb(model)
    return model


def values(model: nn.Module) -> dict[str, NDArray[np.float64]]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


@every_style
def test_new_adapters_change_nothing(toy: Toy, config: AdapterConfig) -> None:
    torch.testing.assert_close(logits(attach(toy(), config).double()), logits(toy().double()), rtol=0, atol=1e-12)


@every_style
def test_the_folded_model_is_timms_own_class_with_the_logits_of_the_split_one(toy: Toy, config: AdapterConfig) -> None:
    split = tuned(toy, config, init_values=0.5)
    expected = logits(split)
    assert (expected - logits(toy(init_values=0.5).double())).abs().max() > 1e-2
    merged = merge(copy.deepcopy(split))
    folded = fold(merged)
    plain = toy(init_values=0.5).double()
    plain.load_state_dict(folded.state_dict(), strict=True)
    for stage in (merged, folded, plain):
        torch.testing.assert_close(logits(stage), expected, rtol=0, atol=1e-12)


@every_style
def test_in_fp32_the_fold_changes_no_logit_by_1e_5_of_the_largest(toy: Toy, config: AdapterConfig) -> None:
    merged = merge(tuned(toy, config)).float()
    expected = logits(merged, torch.float32)
    assert (logits(fold(merged), torch.float32) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_layer_behind_a_repadapter_reads_x_and_s_times_u_in_groups_of_d_x(toy: Toy) -> None:
    model = tuned(toy, GROUPED)
    layer, own = model.get_submodule("blocks.1.mlp.fc1"), values(model.get_submodule("blocks.1.mlp.fc1"))
    assert isinstance(layer, ReadingLayer)
    up = own["adapter.up.weight"]
    assert up.shape == (12, 2)
    whole = np.zeros((12, 4))
    whole[:6, :2], whole[6:, 2:] = up[:6], up[6:]
    x = images().flatten()[:60].view(5, 12).numpy()
    hidden = x @ own["adapter.down.weight"].T + own["adapter.down.bias"]
    read = x + 0.5 * (hidden @ whole.T + own["adapter.up.bias"])
    wanted = read @ own["layer.weight"].T + own["layer.bias"]
    np.testing.assert_allclose(layer.eval()(torch.from_numpy(x)).detach(), wanted, rtol=0, atol=1e-12)
    folded = values(fold(model))
    matrix = np.eye(12) + 0.5 * whole @ own["adapter.down.weight"]
    constant = 0.5 * (whole @ own["adapter.down.bias"] + own["adapter.up.bias"])
    weight, bias = own["layer.weight"] @ matrix, own["layer.bias"] + own["layer.weight"] @ constant
    np.testing.assert_allclose(folded["blocks.1.mlp.fc1.weight"], weight, rtol=0, atol=1e-13)
    np.testing.assert_allclose(folded["blocks.1.mlp.fc1.bias"], bias, rtol=0, atol=1e-13)


def test_ssf_scales_every_operation_of_a_block_and_the_patch_embedding(toy: Toy) -> None:
    model = tuned(toy, SSF)
    own, folded, plain = values(model), values(fold(model)), values(toy().double())
    operations = {name for name, part in model.named_modules() if isinstance(part, ScaledLayer)}
    of_block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert operations == {"patch_embed.proj", *(f"blocks.{i}.{name}" for i in (0, 1) for name in of_block)}
    for name in operations:
        scale, shift = own[f"{name}.adapter.scale"], own[f"{name}.adapter.shift"]
        weight, bias = plain[f"{name}.weight"], plain[f"{name}.bias"]
        np.testing.assert_allclose(folded[f"{name}.weight"].T, weight.T * scale, rtol=0, atol=1e-13)
        np.testing.assert_allclose(folded[f"{name}.bias"], scale * bias + shift, rtol=0, atol=1e-13)
    for name in plain.keys() - {f"{place}.{part}" for place in operations for part in ("weight", "bias")}:
        np.testing.assert_array_equal(folded[name], plain[name])


def test_with_adapters_in_the_last_blocks_nothing_before_them_is_scaled(toy: Toy) -> None:
    named = {name.split(".adapter.")[0] for name in task_state(attach(toy(), LAST)) if ".adapter." in name}
    assert {name.split(".")[1] for name in named} == {"1"}
    assert len(named) == 6


@pytest.mark.parametrize("config", [SSF, GROUPED, SPLIT], ids=["ssf", "groups", "experts"])
def test_training_moves_the_task_alone(toy: Toy, config: AdapterConfig) -> None:
    model = attach(toy(), config)
    assert len(split_layers(model)) == (8 if config is SPLIT else 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    freeze(model)
    set_passes(model, 2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(images(torch.float32)).square().sum().backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    tuned = {name for name in task_state(model) if not name.endswith((".base", ".owner"))}
    # Each draw of two passes leaves experts out.
    assert moved == tuned if config is not SPLIT else moved <= tuned


@pytest.mark.parametrize(("config", "part"), [(SSF, "shift"), (GROUPED, "up.bias"), (SPLIT, "up.bias")])
def test_before_or_after_a_layer_without_a_bias_nothing_is_added(toy: Toy, config: AdapterConfig, part: str) -> None:
    model = tuned(toy, config, qkv_bias=False)
    added = model.get_parameter(f"blocks.0.attn.qkv.adapter.{part}")
    assert not added.requires_grad
    assert not added.any()
    assert model.get_parameter(f"blocks.0.mlp.fc1.adapter.{part}").requires_grad
    expected = logits(model)
    folded = fold(merge(model))
    assert folded.state_dict().keys() == toy(qkv_bias=False).state_dict().keys()
    torch.testing.assert_close(logits(folded), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [SSF, GROUPED], ids=["ssf", "groups"])
def test_a_layer_without_a_bias_takes_in_no_constant(toy: Toy, config: AdapterConfig) -> None:
    model = tuned(toy, config, qkv_bias=False)
    (adapter,) = adapters(model.get_submodule("blocks.0.attn.qkv"))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(1.0)
    with pytest.raises(BackboneError, match=r"has no bias, so it cannot take in an adapter that adds a constant$"):
        fold(model)


def test_what_is_not_finite_is_refused_by_name(toy: Toy) -> None:
    model = tuned(toy, SSF)
    with torch.no_grad():
        model.get_parameter("blocks.1.norm2.adapter.scale")[0] = torch.nan
    with pytest.raises(BundleError, match=r"^blocks\.1\.norm2\.adapter\.scale holds NaN or infinity"):
        merge(model)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"style": "ssf", "scale": 0.5}, r"^--scale 0\.5: ssf adapters have none, leave it out$"),
        ({"groups": 2}, r"^--groups 2: parallel adapters have none, leave it out$"),
        ({"style": "repadapter", "groups": 2}, r"^--groups 2: experts take the place of groups, leave it out$"),
        ({"style": "repadapter", "experts": 1, "groups": 0}, r"^--groups 0: at least 1$"),
        ({"style": "repadapter", "experts": 1, "groups": 3}, r"^--groups 3: does not divide --bottleneck 16$"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        AdapterConfig(**settings)


def test_groups_that_do_not_divide_the_width_are_refused_and_nothing_is_attached(toy: Toy) -> None:
    model = toy()
    config = AdapterConfig(bottleneck=8, experts=1, style="repadapter", groups=8)
    with pytest.raises(ConfigError, match=r"^--groups 8: does not divide the backbone's width 12$"):
        attach(model, config)
    assert not adapters(model)


def dinov3(name: str, config: AdapterConfig) -> Transformer:
    model = attach(load_backbone(name, Weights("random"), 3, 32), config).double()
    perturb(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("name", "config"), [(eva.NAME, SSF), (eva.NAME, SPLIT), (eva.BIASED, GROUPED)])
def test_on_a_dinov3_the_fold_is_as_exact(name: str, config: AdapterConfig) -> None:
    model, x = dinov3(name, config).eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected, plain = model(x), load_backbone(name, Weights("random"), 3, 32).double().eval()
    assert (expected - plain(x)).abs().max() > 1e-2
    plain.load_state_dict(fold(merge(model)).state_dict(), strict=True)
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=1e-12)


def test_ssf_on_a_dinov3_that_adds_biases_after_qkv_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"^ssf: this backbone adds the biases of q and v after qkv, where no"):
        dinov3(eva.BIASED, SSF)
