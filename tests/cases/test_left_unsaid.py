"""What a checkpoint does not say, or says elsewhere, is found, said, or refused: nothing is left out without a word."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor

from export.convert import convert
from export.options import ConvertConfig
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import Weights, randomise
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Preprocess, probabilities
from mosa_deploy.errors import BackboneError, BundleError, ConfigError
from tests.support.peft_models import CLASSES, EQUAL, NAME, vit

NAMES = ["dog", "cat", "ant", "bee", "elk"]

Entries = Mapping[str, Any]


def tuned(**arguments: Any) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model(NAME, num_classes=CLASSES, **arguments)
    randomise(model)
    model.train(False)
    return model


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    state: dict[str, Tensor] = tuned().state_dict()
    return state


def wrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in state.items()}


def converted(folder: Path, content: Entries, **settings: Any) -> Bundle:
    torch.save(content, folder / "w.pth")
    return from_path(folder / "w.pth", folder / "run", **settings)


def from_path(path: Path, out: Path, **settings: Any) -> Bundle:
    return Bundle.load(convert(ConvertConfig(path, "timm", "parts", NAME, random_weights=True, out=out, **settings)))


def assert_as(bundle: Bundle, model: Any) -> None:
    """The bundle answers as the library's model does, on one photo's worth of noise."""
    height, width = bundle.record.preprocess.size
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        given = probabilities(restore(bundle, Weights("random"))(images).numpy(), 1.0)
        out = model(images)
        expected = (out if isinstance(out, Tensor) else out.logits).softmax(-1).numpy()
    assert np.abs(given - expected).max() < EQUAL


def test_patches_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"has patches of 8 x 8 pixels, --backbone test_vit has 16 x 16: name the"):
        converted(tmp_path, tuned(patch_size=8, img_size=80).state_dict())


def test_patches_of_another_size_of_transformers_are_refused(tmp_path: Path) -> None:
    vit(patch_size=8, image_size=80).save_pretrained(tmp_path / "vit")
    with pytest.raises(BackboneError, match=r"vit has patches of 8 x 8 pixels"):
        from_path(tmp_path / "vit", tmp_path / "run")


def test_images_are_as_large_as_the_position_embeddings(tmp_path: Path) -> None:
    model = tuned(img_size=96)
    bundle = converted(tmp_path, model.state_dict())
    assert bundle.record.preprocess.size == (96, 96)
    assert_as(bundle, model)


def test_another_image_size_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(tmp_path, tuned(img_size=96).state_dict(), image_size=160)
    assert "w.pth has image_size 96, images are 160 x 160: the position embeddings are" in capsys.readouterr().out


@pytest.mark.parametrize("size", [96, [96, 96]], ids=str)
def test_the_image_size_of_a_model_of_timms_hub_is_that_it_was_made_with(tmp_path: Path, size: Any) -> None:
    model = tuned(img_size=96)
    timm.models.save_for_hf(model, str(tmp_path), model_args={"img_size": size}, safe_serialization=True)
    bundle = from_path(tmp_path / "model.safetensors", tmp_path / "run")
    assert bundle.record.preprocess.size == (96, 96)
    assert_as(bundle, model)


def test_qkv_without_a_bias_has_zeros(tmp_path: Path) -> None:
    model = vit(qkv_bias=False)
    model.save_pretrained(tmp_path / "vit")
    assert_as(from_path(tmp_path / "vit", tmp_path / "run"), model)


@pytest.mark.parametrize(
    "settings",
    [
        {"hyper_parameters": {"global_pool": "avg", "fc_norm": False}},
        {"hyper_parameters": {"model": {"kwargs": {"global_pool": "avg", "fc_norm": False}}, "lr": 0.1}},
        {"args": argparse.Namespace(model="vit_mine", global_pool=True, fc_norm=False)},
    ],
    ids=str,
)
def test_the_pooling_in_the_settings_of_a_script_is_taken(tmp_path: Path, settings: Entries) -> None:
    model = tuned(global_pool="avg", fc_norm=False)
    assert_as(converted(tmp_path, {"state_dict": model.state_dict(), **settings}), model)


def test_a_flag_decides_against_the_settings_of_a_script(tmp_path: Path, state: dict[str, Tensor]) -> None:
    content = {"state_dict": state, "hparams": {"global_pool": "max"}}
    assert_as(converted(tmp_path, content, pool="token"), tuned())


def test_how_a_script_read_images_is_said(
    tmp_path: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    converted(tmp_path, {"state_dict": state, "hyper_parameters": {"mean": [0.4, 0.4, 0.4], "num_heads": 7, "lr": 0.1}})
    assert (
        "w.pth says mean [0.4, 0.4, 0.4], num_heads 7, which is not taken: give --preprocess" in capsys.readouterr().out
    )


def test_a_norm_behind_the_pooling_names_the_flag(tmp_path: Path) -> None:
    model = tuned(global_pool="avg")
    with pytest.raises(
        BackboneError, match=r"unexpected fc_norm\.weight; its norm stands behind the pooling: give --p"
    ):
        converted(tmp_path, model.state_dict())
    assert_as(converted(tmp_path, model.state_dict(), pool="avg"), model)


def test_where_no_file_says_it_the_function_is_said(
    tmp_path: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    converted(tmp_path, state)
    assert "so it is as timm has it: pools by 'token', activation gelu, 2 heads; otherwise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"temperature": torch.tensor(1.7)}, "temperature"),
        ({"mean": torch.ones(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, "mean, std"),
    ],
    ids=["temperature", "normalisation"],
)
def test_what_lies_beside_a_model_is_left_out_with_a_word(
    tmp_path: Path, state: dict[str, Tensor], more: Entries, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    converted(tmp_path, {"state_dict": wrapped(state) | dict(more)})
    assert f"w.pth: left out, since it is neither backbone nor head: {said}; if it norm" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more", [{"criterion.weight": torch.ones(5)}, {"n_averaged": torch.tensor(3)}], ids=["loss", "counter"]
)
def test_what_changes_no_answer_needs_no_word(
    tmp_path: Path, state: dict[str, Tensor], more: Entries, capsys: pytest.CaptureFixture[str]
) -> None:
    converted(tmp_path, {"state_dict": wrapped(state) | dict(more), "opt": {"state": [{"mom": torch.ones(3)}]}})
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [
        {"class_to_idx": {name: i for i, name in enumerate(NAMES)}},
        {"hyper_parameters": {"class_names": tuple(NAMES)}},
        {"idx_to_class": dict(enumerate(NAMES))},
    ],
    ids=str,
)
def test_class_names_in_a_checkpoint_come_before_the_folders(
    tmp_path: Path, state: dict[str, Tensor], more: Entries
) -> None:
    for name in NAMES:
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "images" / name / "a.png")
    bundle = converted(tmp_path, {"state_dict": state, **more}, images=tmp_path / "images", min_accuracy=0)
    assert bundle.record.classes == tuple(NAMES)


def test_torchvisions_vits_read_images_as_torchvision_does(
    tmp_path: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    model = torchvision.models.VisionTransformer(160, 16, 6, 2, 64, 192, num_classes=CLASSES)
    read = converted(tmp_path, model.state_dict()).record.preprocess
    theirs = torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.transforms(crop_size=160, resize_size=182)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (181, 247, 3), dtype=np.uint8))
    given = read.normalise(read.pixels(image)[None])[0]
    assert np.abs(given - theirs(image).numpy()).max() < EQUAL
    assert isinstance(read, Preprocess)
    assert "from torchvision's transforms of its ViTs" in capsys.readouterr().out


def test_a_processor_above_a_checkpoint_of_the_trainer_is_found(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path / "out" / "checkpoint-500")
    processor = {"size": {"height": 160, "width": 160}, "image_mean": [0.4, 0.4, 0.4]}
    (tmp_path / "out" / "preprocessor_config.json").write_text(json.dumps(processor))
    bundle = from_path(tmp_path / "out" / "checkpoint-500", tmp_path / "run")
    assert bundle.record.preprocess.mean == (0.4, 0.4, 0.4)


def test_names_that_contradict_their_numbers_are_refused(tmp_path: Path) -> None:
    vit(id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["label2id"] = {name: i for i, name in enumerate(reversed(NAMES))}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"id2label and label2id contradict each other: repair it, or give --classes"):
        from_path(tmp_path, tmp_path / "run")
    assert from_path(tmp_path, tmp_path / "run", classes="a,b,c,d,e").record.classes[0] == "a"


def test_a_model_with_nan_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(BundleError, match=r"w\.pth holds NaN or infinity, in head\.bias: bring a checkpoint from bef"):
        converted(tmp_path, state | {"head.bias": torch.full((CLASSES,), torch.nan)})


def test_a_backbone_of_another_library_is_said_to_be(tmp_path: Path, state: dict[str, Tensor]) -> None:
    other = {name.replace("patch_embed.proj", "patch_embed.projection"): value for name, value in state.items()}
    with pytest.raises(BackboneError, match=r"has no backbone by the names of timm, torchvision or transformers, but"):
        converted(tmp_path, {"state_dict": other})


def test_a_backbone_that_is_no_vit_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"resnet18 is a ResNet, not a plain ViT or Swin"):
        convert(
            ConvertConfig(tmp_path / "w.pth", "timm", "parts", "resnet18", random_weights=True, out=tmp_path / "run")
        )


def test_a_head_that_compares_directions_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    backbone = {name: value for name, value in wrapped(state).items() if ".head." not in name}
    with pytest.raises(BackboneError, match=r"has a head arcface\.weight, by its name one that compares directions"):
        converted(tmp_path, {"state_dict": backbone | {"arcface.weight": torch.randn(CLASSES, 64)}})


def test_a_name_on_the_hub_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"google/vit-base: no such file; give a file or a folder on this machine"):
        from_path(Path("google/vit-base"), tmp_path / "run")
