"""Adapters of PEFT on a DINOv3 of transformers or timm, and its checkpoints, as bundles that answer as they do."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from export.convert import convert
from export.options import ConvertConfig
from export.peft_adapter import read_peft
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import BackboneError, BundleError
from tests.support import eva
from tests.support.peft_models import adapted, difference

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "image_size": 32,
    "patch_size": 8, "num_register_tokens": 4,
}  # fmt: skip
"""The shape of the small DINOv3 for tests."""

NEAR = 1e-5


class Classifier(nn.Module):
    """transformers has no classifier on a DINOv3, so this is what users write."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SHAPE))
        self.head = nn.Linear(32, 3)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K)."""
        logits: Tensor = self.head(self.backbone(images).pooler_output)
        return logits


@pytest.fixture
def model(tmp_path: Path) -> Classifier:
    """A classifier of which no tensor is constant, with its backbone in `base`."""
    made = Classifier().eval()
    randomise(made)
    made.backbone.save_pretrained(tmp_path / "base")
    return made


@torch.inference_mode()
def answers(model: nn.Module) -> Tensor:
    """Probabilities (4, K)."""
    logits: Tensor = model.eval()(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return logits.softmax(-1)


def converted(tmp_path: Path, path: str, weights: str = "base", **settings: Any) -> tuple[Bundle, Tensor]:
    """The bundle, and its probabilities."""
    given = {"source": "peft", "name": "parts", "backbone": eva.BIASED, **settings}
    config = ConvertConfig(path=tmp_path / path, backbone_weights=tmp_path / weights, out=tmp_path / "run", **given)
    bundle = Bundle.load(convert(config))
    return bundle, answers(restore(bundle, Weights("file", tmp_path / weights)))


def test_its_features_are_those_of_transformers(model: Classifier, tmp_path: Path) -> None:
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected = model.backbone(images).pooler_output
        given = load_backbone(eva.BIASED, tmp_path / "base")(images)
    assert difference(given, expected) < NEAR * expected.abs().max()


def test_a_lora_is_converted(model: Classifier, tmp_path: Path) -> None:
    tuned = adapted(model, tmp_path / "peft", target_modules=["q_proj", "down_proj"], modules_to_save=["head"])
    bundle, given = converted(tmp_path, "peft")
    assert bundle.record.method == "lora"
    assert bundle.record.adapter is not None
    assert bundle.record.adapter.targets == ("q", "fc2")
    assert difference(given, answers(tuned)) < NEAR


def test_an_adapter_that_tunes_biases_becomes_a_whole_backbone(model: Classifier, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["head"]}
    tuned = adapted(model, None, use_dora=True, bias="all", **settings)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith(".bias") and "head" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    tuned.save_pretrained(str(tmp_path / "peft"))
    # Without it the eps is that which transformers has for a DINOv3.
    (tmp_path / "base" / "config.json").unlink()
    bundle, given = converted(tmp_path, "peft")
    assert bundle.record.method == "full"
    assert difference(given, answers(tuned)) < NEAR


def test_tuned_biases_that_the_backbone_lacks_are_refused_with_the_one_that_has_them(tmp_path: Path) -> None:
    made = Classifier()
    for name, parameter in made.named_parameters():
        if name.endswith(("q_proj.bias", "v_proj.bias")):
            torch.nn.init.zeros_(parameter)
    made.backbone.save_pretrained(tmp_path / "base")
    adapted(made, tmp_path / "peft", target_modules=["q_proj"], bias="all", modules_to_save=["head"])
    expected = r"does not fit the backbone, in .*blocks\.0\.attn\.q\.bias.*: give the same DINOv3 .* ends in _qkvb$"
    with pytest.raises(BundleError, match=expected):
        converted(tmp_path, "peft", backbone=eva.NAME)


def test_the_names_of_older_releases_are_known(model: Classifier, tmp_path: Path) -> None:
    adapted(model, tmp_path / "peft", target_modules=["q_proj"], modules_to_save=["head"])
    today, path = read_peft(tmp_path / "peft"), tmp_path / "peft" / "adapter_model.safetensors"
    older = {
        name.replace(".backbone.model.layer.", ".backbone.layer."): value for name, value in load_file(path).items()
    }
    assert older.keys() != load_file(path).keys()
    save_file(older, path)
    again = read_peft(tmp_path / "peft")
    assert again.updates.keys() == today.updates.keys() == {(0, "q"), (1, "q")}
    assert again.family(has_class_token=True) == today.family(has_class_token=True)


def test_a_checkpoint_with_an_unchanged_backbone_is_a_head_on_the_class_token(
    model: Classifier, tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / "tuned.pth")
    bundle, given = converted(tmp_path, "tuned.pth", source="timm")
    assert bundle.record.method == "linear"
    assert difference(given, answers(model)) < NEAR


def test_an_adapter_on_timms_own_dinov3_reads_what_timm_pools(tmp_path: Path) -> None:
    own = timm.create_model(eva.NAME, num_classes=3)
    randomise(own)
    torch.save(own.state_dict(), tmp_path / "base.pth")
    tuned = adapted(own, tmp_path / "peft", target_modules=["qkv", "fc1"], modules_to_save=["head"])
    bundle, given = converted(tmp_path, "peft", "base.pth", backbone=eva.NAME)
    assert bundle.record.method == "lora"
    assert difference(given, answers(tuned)) < NEAR


def test_another_backbone_than_a_dinov3_is_refused(model: Classifier, tmp_path: Path) -> None:
    adapted(model, tmp_path / "peft", target_modules=["q_proj"], modules_to_save=["head"])
    config = ConvertConfig(tmp_path / "peft", "peft", "parts", "test_vit", random_weights=True, out=tmp_path / "run")
    expected = r"is of transformers' DINOv3, --backbone is a ViT: name timm's vit_\*_patch16_dinov3 of that size$"
    with pytest.raises(BackboneError, match=expected):
        convert(config)


def test_other_angles_than_those_of_every_published_dinov3_are_refused(tmp_path: Path) -> None:
    hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SHAPE, rope_theta=10.0)).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"config\.json does not fit the backbone: rope_theta 10\.0, known is 100;"):
        load_backbone(eva.BIASED, tmp_path)
