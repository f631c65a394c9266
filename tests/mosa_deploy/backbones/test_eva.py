"""What is DINOv3's own: what it pools, the names of its weights elsewhere, its biases of q and v, and refusals."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva, EvaAttention
from torch import Tensor

from mosa_deploy.adapters.attach import attach
from mosa_deploy.adapters.fold import fold
from mosa_deploy.adapters.merge import merge
from mosa_deploy.adapters.restore import describe_backbone
from mosa_deploy.backbones.foldable import image_size
from mosa_deploy.backbones.function import departures, set_function
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.errors import BackboneError
from tests.support import eva
from tests.support.models import perturb

LORA = AdapterConfig(bottleneck=4, experts=1, scale=1.0, style="low-rank", targets=("q", "v"))


def backbone(name: str = eva.NAME, **settings: Any) -> Eva:
    model = load_backbone(name, Weights("random"), **settings)
    assert isinstance(model, Eva)
    return model


@torch.inference_mode()
def answers(model: torch.nn.Module, side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    given: Tensor = model.eval()(torch.randn(2, 3, side, side, generator=generator))
    return given


def test_it_pools_the_class_token_as_its_authors_do_unless_timms_way_is_asked_for() -> None:
    ours, timms = backbone(), backbone(model_args=ModelArgs())
    assert (ours.global_pool, timms.global_pool) == ("token", "avg")
    assert departures(eva.NAME, ours) == ModelArgs(global_pool="token", fc_norm=False)
    assert departures(eva.NAME, timms) == ModelArgs()
    assert describe_backbone(eva.NAME, "random", ours).sha256 != describe_backbone(eva.NAME, "random", timms).sha256


@pytest.mark.parametrize(
    "arguments",
    [
        {"fc_norm": True},
        {"global_pool": "max", "fc_norm": False},
        {"reg_tokens": 2, "act_layer": "quick_gelu"},
        {"class_token": False},
    ],
    ids=str,
)
def test_a_model_is_made_again_from_its_departures(arguments: dict[str, Any]) -> None:
    model = backbone(model_args=ModelArgs(**arguments))
    args = departures(eva.NAME, model)
    assert args.given().items() >= arguments.items()
    assert torch.equal(answers(backbone(model_args=args)), answers(model))


def test_it_has_the_same_tensors_for_images_of_any_size() -> None:
    small, large = backbone(), backbone(img_size=64)
    assert image_size(large) == (64, 64)
    assert answers(large, 64).isfinite().all()
    assert all(torch.equal(value, large.state_dict()[name]) for name, value in small.state_dict().items())


def test_other_heads_than_its_positions_are_made_for_are_refused() -> None:
    model = backbone()
    with pytest.raises(BackboneError, match=r"^num_heads 4: this backbone turns 2 heads by their positions$"):
        set_function(model, ModelArgs(num_heads=4))


def test_a_low_rank_update_reaches_a_qkv_with_biases_of_its_own() -> None:
    model = attach(backbone(eva.BIASED, classes=3), LORA)
    before = answers(model)
    perturb(model)
    assert (answers(model) - before).abs().max() > 1e-2
    torch.testing.assert_close(answers(fold(merge(model))), answers(model))


def by_meta(model: Eva) -> dict[str, Tensor]:
    """The state dict of a DINOv3 by the names of its authors, with what else their files hold."""
    state: dict[str, Tensor] = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}
    for name, value in model.state_dict().items():
        name = name.replace("reg_token", "storage_tokens")
        name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        state[name] = value
    for i, block in enumerate(model.blocks.children()):
        attention = block.get_submodule("attn")
        assert isinstance(attention, EvaAttention)
        for part in "qv":
            state.pop(f"blocks.{i}.attn.{part}_bias", None)
        zeros = torch.zeros(32)
        query, value = (zeros, zeros) if attention.q_bias is None else (attention.q_bias.data, attention.v_bias.data)
        # The bias of k is masked, whatever it is.
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat([query, torch.ones(32), value])
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([zeros + 1, zeros, zeros + 1])
    return state


@pytest.mark.parametrize("name", [eva.NAME, eva.BIASED])
def test_a_file_of_its_authors_is_read(tmp_path: Path, name: str) -> None:
    model = backbone(name)
    torch.save({"teacher": by_meta(model)}, tmp_path / "w.pth")
    loaded = load_backbone(name, tmp_path / "w.pth")
    assert torch.equal(answers(loaded), answers(model))


def test_weights_without_biases_are_those_of_a_backbone_whose_biases_are_zero(tmp_path: Path) -> None:
    torch.save(backbone().state_dict(), tmp_path / "w.pth")
    loaded = load_backbone(eva.BIASED, tmp_path / "w.pth")
    torch.testing.assert_close(answers(loaded), answers(backbone()))


def test_biases_that_the_backbone_lacks_are_not_left_out(tmp_path: Path) -> None:
    torch.save(backbone(eva.BIASED).state_dict(), tmp_path / "w.pth")
    expected = rf"does not fit {eva.NAME}: .*unexpected blocks\.0\.attn\.q_bias.*; with .* it is {eva.BIASED}$"
    with pytest.raises(BackboneError, match=expected):
        load_backbone(eva.NAME, tmp_path / "w.pth")


@pytest.mark.parametrize("size", ["small_plus", "huge_plus", "7b"])
def test_a_size_with_gated_ffns_is_refused_by_name_with_one_that_is_taken(size: str) -> None:
    name = f"vit_{size}_patch16_dinov3"
    with pytest.raises(BackboneError) as caught:
        load_backbone(name, depth=3)
    assert str(caught.value) == (
        f"{name} cannot be folded exactly: blocks.0-2: mlp is SwiGLU, not Mlp; choose a plain pre-norm ViT, such as"
        " vit_small_patch14_dinov2.lvd142m or vit_small_patch16_dinov3.lvd1689m, or a Swin"
    )


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_the_other_sizes_are_taken(size: str) -> None:
    name = f"vit_{size}_patch16_dinov3"
    assert timm.is_model(name)
    assert isinstance(backbone(name, depth=1, embed_dim=24, num_heads=3, img_size=32), Eva)
