"""`--backbone-weights` of a ViT of transformers: names, q, k and v, eps, and what its config says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.backbones.transformers_names import timm_name
from mosa_deploy.errors import BackboneError
from tests.support.peft_models import NAME, images, vit


def features(file: Path, **kwargs: Any) -> Tensor:
    """The normalised class token of the backbone in the file."""
    with torch.inference_mode():
        token: Tensor = load_backbone(NAME, Weights("file", file), **kwargs)(images())
    return token


def expected(model: ViTForImageClassification) -> Tensor:
    with torch.inference_mode():
        token: Tensor = model.vit(images()).last_hidden_state[:, 0]
    return token


@pytest.mark.parametrize("eps", [1e-12, 1e-6])
def test_its_file_gives_the_same_features_whatever_its_eps(tmp_path: Path, eps: float) -> None:
    model = vit(layer_norm_eps=eps)
    model.save_pretrained(tmp_path)
    assert "vit.encoder.layer.0.attention.attention.query.weight" in load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(features(tmp_path / "model.safetensors"), expected(model), rtol=0, atol=1e-5)


def test_an_eps_of_timms_would_not_do(tmp_path: Path) -> None:
    model = vit()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"layer_norm_eps": 1e-06}')
    assert (features(tmp_path / "model.safetensors") - expected(model)).abs().max() > 5e-5


def test_todays_names_a_wrapper_and_a_prefix_are_read(tmp_path: Path) -> None:
    model = vit()
    state = {f"net.{name}": value for name, value in model.state_dict().items()}
    assert "net.vit.layers.0.attention.q_proj.weight" in state
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    torch.testing.assert_close(features(tmp_path / "w.pth"), expected(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [ViTModel, ViTForMaskedImageModeling])
def test_a_pooler_or_a_decoder_is_left_out(tmp_path: Path, kind: Any) -> None:
    model = vit()
    other = kind(model.config)
    inner = other if kind is ViTModel else other.vit
    inner.load_state_dict(model.vit.state_dict(), strict=False)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    torch.testing.assert_close(features(tmp_path / "w.safetensors"), expected(model), rtol=0, atol=1e-5)


def test_at_another_image_size_the_position_embedding_is_resampled(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    model = load_backbone(NAME, Weights("file", tmp_path / "model.safetensors"), img_size=96)
    assert model.get_parameter("pos_embed").shape == (1, 37, 64)


def test_what_is_missing_or_unknown_is_listed(tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in vit().state_dict().items()}
    del state["vit.layers.1.attention.k_proj.bias"]
    state["vit.layers.0.layer_scale1.lambda1"] = torch.ones(64)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError) as caught:
        features(tmp_path / "w.safetensors")
    for fault in (
        "missing blocks.1.attn.qkv.bias",
        "unexpected blocks.1.attn.q.bias",
        "unexpected blocks.0.ls1.gamma",
    ):
        assert fault in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 4},
        {"hidden_act": "quick_gelu"},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu"},
        {"layer_norm_eps": 1e-3},
    ],
    ids=str,
)
def test_what_no_tensor_shows_is_read_from_its_config(tmp_path: Path, change: dict[str, Any]) -> None:
    model = vit(**change)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(features(tmp_path / "model.safetensors"), expected(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"num_attention_heads": 3}, r"num_heads 3 does not divide the backbone's width 64"),
        ({"hidden_act": "mish"}, r"hidden_act mish, known are gelu, gelu_python, .*"),
        ({"layer_norm_eps": 0}, r"norm_eps 0.0: give a number between 0 and 1"),
    ],
)
def test_what_timm_cannot_compute_is_refused(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    vit().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BackboneError, match=rf"config\.json does not fit the backbone: {fault}; choose another ViT$"):
        features(tmp_path / "model.safetensors")
    path.write_text("[")
    with pytest.raises(BackboneError, match=r"config\.json is not a JSON object: repair it, or move it elsewhere"):
        features(tmp_path / "model.safetensors")


def test_a_backbone_that_pools_otherwise_is_refused(tmp_path: Path) -> None:
    model = ViTForImageClassification(vit().config)
    randomise(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"missing fc_norm\.bias"):
        features(tmp_path / "model.safetensors", global_pool="avg")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("vit.encoder.layer.11.attention.output.dense", "blocks.11.attn.proj"),
        ("encoder.layer.0.output.dense.bias", "blocks.0.mlp.fc2.bias"),
        ("vit.layers.3.attention.v_proj.weight", "blocks.3.attn.v.weight"),
        ("embeddings.cls_token", "cls_token"),
        ("classifier.weight", "head.weight"),
        ("vit.layers.3.attention", None),
        ("blocks.3.attn.qkv", None),
        ("vit.pooler.dense.weight", None),
    ],
)
def test_a_name_is_found_or_there_is_none(name: str, known: str | None) -> None:
    assert timm_name(name) == known
