"""Classifiers of transformers as bundles: each answers as transformers does, or is refused by name with the reason."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers as hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from export.convert import convert
from export.options import ConvertConfig
from export.peft_adapter import read_peft
from export.sources import of_peft
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.checkpoints import read_head, source_args
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.backbones.transformers import model_args, read_config
from mosa_deploy.backbones.transformers_names import DINOV2, check_head_input
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.errors import BackboneError
from tests.support.peft_models import adapted, answers, difference

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
LABELS: dict[str, Any] = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
WIDE: dict[str, Any] = {**SHAPE, "intermediate_size": 96, "patch_size": 16}
DINO: dict[str, Any] = {**SHAPE, "mlp_ratio": 3, "patch_size": 16}
TEXT: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
TIMM: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 3, "img_size": 32, "patch_size": 16}
NEAR = 1e-5


def towers(config: Any, **vision: Any) -> Any:
    """The config of a model with a tower for images and one for texts."""
    text = {**TEXT, "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return config(vision_config=vision, text_config=text, **LABELS)


def vit() -> Any:
    return hf.ViTForImageClassification(hf.ViTConfig(**WIDE, **LABELS))


def msn() -> Any:
    return hf.ViTMSNForImageClassification(hf.ViTMSNConfig(**WIDE, **LABELS))


def deit() -> Any:
    return hf.DeiTForImageClassification(hf.DeiTConfig(**WIDE, **LABELS))


def deit_with_teacher() -> Any:
    return hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**WIDE, **LABELS))


def ijepa() -> Any:
    return hf.IJepaForImageClassification(hf.IJepaConfig(**WIDE, **LABELS))


def siglip() -> Any:
    return hf.SiglipForImageClassification(towers(hf.SiglipConfig, **WIDE))


def clip() -> Any:
    return hf.CLIPForImageClassification(towers(hf.CLIPConfig, **WIDE))


def siglip2() -> Any:
    vision = {**WIDE, "num_patches": 4}
    del vision["image_size"]
    return hf.Siglip2ForImageClassification(towers(hf.Siglip2Config, **vision))


def mae() -> Any:
    return hf.ViTMAEModel(hf.ViTMAEConfig(**WIDE, mask_ratio=0.0))


def dinov2() -> Any:
    return hf.Dinov2ForImageClassification(hf.Dinov2Config(**DINO, **LABELS))


def dinov2_with_registers() -> Any:
    config = hf.Dinov2WithRegistersConfig(**DINO, **LABELS)
    return hf.Dinov2WithRegistersForImageClassification(config)


def beit() -> Any:
    return hf.BeitForImageClassification(hf.BeitConfig(**WIDE, **LABELS))


def gated_dinov3() -> Any:
    return hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**WIDE, **LABELS, use_gated_mlp=True))


def swin() -> Any:
    config = hf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    return hf.SwinForImageClassification(config)


def saved(make: Callable[[], Any], folder: Path) -> Any:
    """A model of which no tensor is constant, in a folder as `save_pretrained` writes it."""
    model = make().eval()
    randomise(model)
    model.save_pretrained(folder)
    return model


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def answer(folder: Path, name: str) -> Tensor:
    """The logits of the classifier in a folder, computed by timm's ViT, as a conversion sets it up."""
    args = source_args(folder, "--from timm").given()
    args |= model_args(read_config(folder)).given()
    shape = {key: value for key, value in TIMM.items() if key != "num_heads"}
    model = load_backbone(name, Weights("file", folder), model_args=ModelArgs(**args), **shape)
    head = read_head(folder, model.state_dict(), "--from timm")
    given: Tensor = model(images())
    return given @ head.weight.T + head.bias


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (vit, "vit_base_patch16_224"),
        (msn, "vit_base_patch16_224"),
        (deit, "deit_base_patch16_224"),
        (ijepa, "vit_base_patch16_224"),
        (siglip, "vit_base_patch16_siglip_224"),
        (siglip, "vit_base_patch16_siglip_gap_224"),
        (clip, "vit_base_patch16_clip_quickgelu_224"),
        (clip, "vit_base_patch16_clip_224"),
    ],
)
def test_a_classifier_answers_as_transformers_does(tmp_path: Path, make: Callable[[], Any], name: str) -> None:
    model = saved(make, tmp_path)
    with torch.inference_mode():
        expected = model(images()).logits
    assert difference(answer(tmp_path, name).softmax(-1), expected.softmax(-1)) < NEAR


@torch.inference_mode()
def features(folder: Path, name: str, **kwargs: Any) -> Tensor:
    """What a backbone gives with the weights in a folder, as `--backbone-weights` loads them."""
    given: Tensor = load_backbone(name, Weights("file", folder), **{**TIMM, **kwargs})(images())
    return given


@pytest.mark.parametrize(
    ("make", "name", "read"),
    [
        (vit, "vit_base_patch16_224", lambda m, x: m.vit(x).last_hidden_state[:, 0]),
        (dinov2, "vit_small_patch14_dinov2", lambda m, x: m.dinov2(x).pooler_output),
        (dinov2_with_registers, "vit_small_patch14_reg4_dinov2", lambda m, x: m.dinov2_with_registers(x).pooler_output),
        (deit, "deit_base_patch16_224", lambda m, x: m.deit(x).last_hidden_state[:, 0]),
        (siglip, "vit_base_patch16_siglip_224", lambda m, x: m.vision_model(x).pooler_output),
        (clip, "vit_base_patch16_clip_224", lambda m, x: m.vision_model(x).pooler_output),
    ],
)
def test_a_backbone_gives_the_features_of_transformers(
    tmp_path: Path, make: Callable[[], Any], name: str, read: Callable[[Any, Tensor], Tensor]
) -> None:
    model = saved(make, tmp_path)
    with torch.inference_mode():
        expected = read(model, images())
    assert difference(features(tmp_path, name), expected) < NEAR * expected.abs().max()


def test_patches_of_siglip_2_with_free_resolution_are_read_in_their_own_order(tmp_path: Path) -> None:
    model = saved(siglip2, tmp_path)
    patches = images().unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).reshape(4, 4, -1)
    shapes = torch.tensor([[2, 2]] * 4)
    with torch.inference_mode():
        expected = model.vision_model(patches, torch.ones(4, 4), shapes).pooler_output
    given = features(tmp_path, "vit_base_patch16_siglip_224")
    assert difference(given, expected) < NEAR * expected.abs().max()


def test_the_encoder_of_an_mae_is_read(tmp_path: Path) -> None:
    model = saved(mae, tmp_path)
    with torch.inference_mode():
        expected = model(images(), noise=torch.arange(4.0).expand(4, 4)).last_hidden_state[:, 0]
    assert difference(features(tmp_path, "vit_base_patch16_224"), expected) < NEAR * expected.abs().max()


@pytest.mark.parametrize("make", [dinov2, dinov2_with_registers])
def test_a_classifier_on_two_tokens_is_refused_with_the_reason(tmp_path: Path, make: Callable[[], Any]) -> None:
    model = saved(make, tmp_path)
    name = "vit_small_patch14_dinov2" if make is dinov2 else "vit_small_patch14_reg4_dinov2"
    backbone = load_backbone(name, Weights("file", tmp_path), **TIMM)
    assert isinstance(backbone, VisionTransformer)
    with pytest.raises(BackboneError) as caught:
        check_head_input(backbone, DINOV2, model.classifier.in_features, "--from timm w")
    assert str(caught.value) == (
        "--from timm w is of transformers' DINOv2, whose classifier reads the class token and the mean of the patches"
        " together, which is not converted: use it as --backbone-weights, and tune a head on both with mosa tune"
        " --method linear --features cls+mean"
    )


def test_the_two_heads_of_a_deit_with_a_teacher_are_refused(tmp_path: Path) -> None:
    saved(deit_with_teacher, tmp_path)
    with pytest.raises(BackboneError, match=r"averages two heads, which read two tokens, and a bundle has one head$"):
        answer(tmp_path, "deit_base_patch16_224")


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (beit, "is a BEiT of transformers: its blocks add relative positions in the attention; ViT, DeiT, MAE"),
        (
            gated_dinov3,
            r"is a DINOv3 of transformers: its FFNs are gated \(SwiGLU\), as in the sizes S\+, H\+ and 7B; ViT",
        ),
        (swin, "is a Swin of transformers: only ViTs of transformers can be read; ViT, DeiT, MAE"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, make: Callable[[], Any], fault: str) -> None:
    saved(make, tmp_path)
    expected = rf"^--backbone-weights .*model\.safetensors {fault}.* `mosa backbone list` shows what is here"
    with pytest.raises(BackboneError, match=expected):
        features(tmp_path, "vit_base_patch16_224")


LIKE_TEST_VIT: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 192, "image_size": 160,
    "patch_size": 16,
}  # fmt: skip
"""The shape of timm's own small ViT for tests."""


def converted(source: Path, weights: Path, out: Path, kind: Literal["peft", "timm"]) -> Bundle:
    return Bundle.load(convert(ConvertConfig(source, kind, "parts", "test_vit", backbone_weights=weights, out=out)))


def test_a_deit_of_transformers_is_converted_with_its_distillation_token(tmp_path: Path) -> None:
    make = partial(hf.DeiTForImageClassification, hf.DeiTConfig(**LIKE_TEST_VIT, **LABELS))
    model = saved(make, tmp_path / "deit")
    bundle = converted(tmp_path / "deit", tmp_path / "deit", tmp_path / "run", "timm")
    assert bundle.record.method == "linear"
    assert bundle.record.classes == ("a", "b", "c")
    given = answers(restore(bundle, Weights("file", tmp_path / "deit")))
    assert difference(given, answers(model)) < NEAR


def test_a_lora_on_a_siglip_reads_the_mean_of_its_tokens(tmp_path: Path) -> None:
    model = saved(partial(hf.SiglipForImageClassification, towers(hf.SiglipConfig, **LIKE_TEST_VIT)), tmp_path / "base")
    tuned = adapted(model, tmp_path / "peft", target_modules=["q_proj", "fc2"], modules_to_save=["classifier"])
    bundle = converted(tmp_path / "peft", tmp_path / "base", tmp_path / "run", "peft")
    assert bundle.record.method == "lora"
    given = answers(restore(bundle, Weights("file", tmp_path / "base")))
    assert difference(given, answers(tuned)) < NEAR


def test_a_lora_on_a_dinov2_with_its_own_classifier_is_refused(tmp_path: Path) -> None:
    model = saved(dinov2, tmp_path / "base")
    adapted(model, tmp_path / "peft", target_modules=["q_proj"], modules_to_save=["classifier"])
    backbone = load_backbone("vit_small_patch14_dinov2", Weights("file", tmp_path / "base"), **TIMM)
    assert isinstance(backbone, VisionTransformer)
    given = ConvertConfig(tmp_path / "peft", "peft", "parts", "vit_small_patch14_dinov2")
    with pytest.raises(BackboneError, match=r"whose classifier reads the class token and the mean of the patches"):
        of_peft(given, read_peft(tmp_path / "peft"), backbone)
