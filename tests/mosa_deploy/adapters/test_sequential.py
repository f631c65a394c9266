"""Sequential styles: the formulas written out with numpy, and that nothing folds them without a word."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mosa_deploy.adapters.attach import AdaptedBlock, adapters, attach
from mosa_deploy.adapters.fold import fold
from mosa_deploy.adapters.merge import merge
from mosa_deploy.bundles.adapter_config import AdapterConfig, Style
from mosa_deploy.errors import BackboneError, ConfigError
from tests.support.models import perturb

Toy = Callable[..., VisionTransformer]
STYLES: tuple[Style, ...] = ("pfeiffer", "houlsby")


def config(style: Style) -> AdapterConfig:
    return AdapterConfig(bottleneck=5, experts=3, share="none", scale=1.0, style=style)


def tuned(toy: Toy, style: Style) -> VisionTransformer:
    model = attach(toy(init_values=0.3), config(style)).double()
    perturb(model)
    return model.eval()


def tokens() -> Tensor:
    return torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def bottleneck(x: NDArray[np.float64], part: nn.Module, act: Callable[[Any], Any]) -> NDArray[np.float64]:
    """U act(D x + d) + u of a merged adapter."""
    down, bias, up, up_bias = (
        part.get_parameter(name).detach().numpy() for name in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    return np.asarray(act(x @ down.T + bias) @ up.T + up_bias)


def relu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(x, 0)


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x / (1 + np.exp(-x)))


def parts(adapted: nn.Module) -> tuple[Block, nn.Module]:
    assert isinstance(adapted, AdaptedBlock)
    return adapted.block, adapted.adapter


@torch.no_grad()
def test_pfeiffers_adapter_reads_what_the_ffn_wrote(toy: Toy) -> None:
    adapted = merge(tuned(toy, "pfeiffer")).blocks[1]
    block, adapter = parts(adapted)
    x = tokens()
    h = x + block.ls1(block.attn(block.norm1(x)))
    z = block.ls2(block.mlp(block.norm2(h))).numpy()
    centred = z - z.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    normal = normal * adapter.get_parameter("norm.weight").numpy() + adapter.get_parameter("norm.bias").numpy()
    wanted = h.numpy() + z + bottleneck(normal, adapter, relu)
    np.testing.assert_allclose(adapted(x).numpy(), wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_houlsbys_adapters_stand_on_the_residual_stream_after_attention_and_ffn(toy: Toy) -> None:
    adapted = merge(tuned(toy, "houlsby")).blocks[1]
    block, adapter = parts(adapted)
    x = tokens()
    h = (x + block.ls1(block.attn(block.norm1(x)))).numpy()
    h = h + bottleneck(h, adapter.get_submodule("attn"), silu)
    y = h + block.ls2(block.mlp(block.norm2(torch.from_numpy(h)))).numpy()
    wanted = y + bottleneck(y, adapter.get_submodule("ffn"), silu)
    np.testing.assert_allclose(adapted(x).numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("style", STYLES)
def test_new_adapters_change_nothing_and_merging_keeps_the_logits(toy: Toy, style: Style) -> None:
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        plain = toy(init_values=0.3).double()(images)
        fresh = attach(toy(init_values=0.3), config(style)).double().eval()(images)
        torch.testing.assert_close(fresh, plain, rtol=0, atol=1e-12)
        model = tuned(toy, style)
        expected = model(images)
        assert (expected - plain).abs().max() > 1e-2
        torch.testing.assert_close(merge(copy.deepcopy(model))(images), expected, rtol=0, atol=1e-12)
    assert len(adapters(model)) == (2 if style == "pfeiffer" else 4)


@pytest.mark.parametrize(("style", "name"), [("pfeiffer", "PfeifferAdapter"), ("houlsby", "HoulsbyAdapter")])
def test_they_are_refused_by_name_where_they_would_be_folded(toy: Toy, style: Style, name: str) -> None:
    with pytest.raises(BackboneError, match=rf"^blocks\.0: a {name} reads what the block has written, .*: export it "):
        fold(merge(tuned(toy, style)))


def test_a_scale_is_refused_since_they_have_none() -> None:
    with pytest.raises(ConfigError, match=r"^--scale 0.1: houlsby adapters have none, leave it out$"):
        AdapterConfig(style="houlsby")
