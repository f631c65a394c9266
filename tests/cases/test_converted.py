"""Converted models against their own library: from the bytes of awkward files to probabilities.

A family of transformers is one line of `FAMILIES`, a processor one of `PROCESSORS`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import timm.data
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers.image_utils import load_image

from export.convert import convert
from export.options import ConvertConfig
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array, probabilities
from tests.support.awkward import awkward_images
from tests.support.peft_models import CLASSES, EQUAL, NAME, SHAPE, adapted

SIZE = {"height": 160, "width": 160}

Read = Callable[[Path], Tensor]
"""A file -> the library's input (3, H, W)."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("awkward")
    for name, content in awkward_images().items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


def of_library(model: torch.nn.Module, read: Read, files: list[Path]) -> Array:
    model.train(False)
    with torch.inference_mode():
        out = model(torch.stack([read(file) for file in files]))
    return np.asarray((out if isinstance(out, Tensor) else out.logits).softmax(-1))


def of_bundle(config: ConvertConfig, files: list[Path]) -> tuple[Bundle, Array]:
    bundle = Bundle.load(convert(config))
    model = restore(bundle, Weights.choose(config.backbone_weights, config.random_weights))
    read = bundle.record.preprocess
    inputs = read.normalise(np.stack([read.read(file.read_bytes()) for file in files]))
    with torch.inference_mode():
        return bundle, probabilities(model(torch.from_numpy(inputs)).numpy(), bundle.record.temperature)


def assert_equal(given: Array, expected: Array) -> None:
    apart = np.abs(given - expected).max(axis=1)
    assert apart.max() < EQUAL, dict(zip(sorted(awkward_images()), apart.tolist(), strict=True))
    assert np.abs(expected - expected[:1]).max() > 1e-2  # The images are told apart at all.


def transformers_reads(processor: Any) -> Read:
    """As `pipeline("image-classification")` does."""

    def read(file: Path) -> Tensor:
        with Image.open(file) as image:  # Given a path, it leaves the file open.
            pixels: Tensor = processor(load_image(image), return_tensors="pt")["pixel_values"][0]
        return pixels

    return read


def timm_reads(model: Any, **settings: Any) -> Read:
    """As `timm.data.ImageDataset` does."""
    transform = timm.data.create_transform(**timm.data.resolve_data_config(settings, model=model))

    def read(file: Path) -> Tensor:
        with file.open("rb") as handle:
            image: Tensor = timm.data.ImageDataset("", reader=[(handle, 0)], transform=transform)[0][0]
        return image

    return read


class Family(NamedTuple):
    """A classifier of transformers, small and random, and the shape of its config."""

    model: str
    config: str
    settings: Mapping[str, Any] = MappingProxyType({})


FAMILIES = {
    "ViT": Family("ViTForImageClassification", "ViTConfig"),
    "ViT with QuickGELU and 4 heads": Family(
        "ViTForImageClassification", "ViTConfig", {"hidden_act": "quick_gelu", "num_attention_heads": 4}
    ),
    "SigLIP": Family("SiglipForImageClassification", "SiglipConfig"),
    "I-JEPA": Family("IJepaForImageClassification", "IJepaConfig"),
    "DeiT": Family("DeiTForImageClassification", "DeiTConfig"),
    "MSN": Family("ViTMSNForImageClassification", "ViTMSNConfig"),
}

PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTImageProcessor", {"size": SIZE}),
    "ViT, Pillow": ("ViTImageProcessorPil", {"size": SIZE}),
    "DeiT": ("DeiTImageProcessor", {"size": {"height": 183, "width": 183}, "crop_size": SIZE}),
    "CLIP": ("CLIPImageProcessor", {"size": {"shortest_edge": 160}, "crop_size": SIZE}),
    "CLIP, Pillow": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 165}, "crop_size": SIZE}),
    "DINOv2": ("BitImageProcessor", {"size": {"shortest_edge": 183}, "crop_size": SIZE}),
    "SigLIP": ("SiglipImageProcessor", {"size": SIZE}),
    "ConvNext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 160}}),
    "ConvNext, another share": ("ConvNextImageProcessor", {"size": {"shortest_edge": 160}, "crop_pct": 0.95}),
    "no resizing": ("DeiTImageProcessor", {"do_resize": False, "crop_size": SIZE}),
    "no normalising, lanczos": ("ViTImageProcessor", {"size": SIZE, "do_normalize": False, "resample": 1}),
}


def family(name: str) -> Any:
    model, config, settings = FAMILIES[name]
    shape = {**SHAPE, **settings}
    if config == "SiglipConfig":
        shape = {"vision_config": shape}
    made = getattr(transformers, config)(**shape, num_labels=CLASSES)
    torch.manual_seed(0)
    built: Any = getattr(transformers, model)(made)
    randomise(built)
    return built


def processor(name: str) -> Any:
    kind, settings = PROCESSORS[name]
    return getattr(transformers, kind)(**settings)


def timms(path: Path, out: Path, **settings: Any) -> ConvertConfig:
    return ConvertConfig(path=path, source="timm", name="parts", backbone=NAME, out=out, **settings)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tuned_model_of_transformers(tmp_path: Path, files: list[Path], name: str) -> None:
    model, read = family(name), processor("ViT")
    model.save_pretrained(tmp_path / "tuned")
    read.save_pretrained(tmp_path / "tuned")
    config = timms(tmp_path / "tuned" / "model.safetensors", tmp_path / "run", random_weights=True)
    bundle, given = of_bundle(config, files)
    assert bundle.record.method == "full"
    assert_equal(given, of_library(model, transformers_reads(read), files))


REPEATED = ("CLIP, Pillow", "ConvNext, another share", "ViT")
"""Processors whose steps other tests take too."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in REPEATED else []) for name in PROCESSORS]
)
def test_every_processor(tmp_path: Path, files: list[Path], name: str) -> None:
    model, read = family("ViT"), processor(name)
    model.save_pretrained(tmp_path)
    read.save_pretrained(tmp_path)
    settings: dict[str, Any] = {"backbone_weights": tmp_path / "model.safetensors"}
    if "Pil" in type(read).__name__:
        settings["resampler"] = "pillow"
    _, given = of_bundle(timms(tmp_path / "model.safetensors", tmp_path / "run", **settings), files)
    assert_equal(given, of_library(model, transformers_reads(read), files))


def test_the_pipeline_of_transformers_itself(tmp_path: Path, files: list[Path]) -> None:
    model, read = family("ViT"), processor("CLIP")
    model.save_pretrained(tmp_path)
    read.save_pretrained(tmp_path)
    classify: Any = transformers.pipeline("image-classification", model=str(tmp_path), device="cpu")
    expected = []
    for file in files:
        with Image.open(file) as image:
            answer = {entry["label"]: entry["score"] for entry in classify(image, top_k=CLASSES)}
        expected.append([answer[f"LABEL_{i}"] for i in range(CLASSES)])
    config = timms(tmp_path / "model.safetensors", tmp_path / "run", random_weights=True)
    assert_equal(of_bundle(config, files)[1], np.array(expected))


def test_an_adapter_on_transformers(tmp_path: Path, files: list[Path]) -> None:
    base, read = family("ViT"), processor("DINOv2")
    base.save_pretrained(tmp_path / "vit")
    read.save_pretrained(tmp_path / "vit")
    tuned = adapted(base, tmp_path / "peft", target_modules=["q_proj", "fc1"], modules_to_save=["classifier"])
    weights = tmp_path / "vit" / "model.safetensors"
    config = ConvertConfig(tmp_path / "peft", "peft", "parts", NAME, weights, out=tmp_path / "run")
    assert_equal(of_bundle(config, files)[1], of_library(tuned, transformers_reads(read), files))


def test_an_adapter_on_timm(tmp_path: Path, files: list[Path]) -> None:
    model = load_backbone(NAME, Weights("random"), CLASSES)
    randomise(model.get_classifier())
    tuned = adapted(model, tmp_path / "peft", target_modules=["qkv"], modules_to_save=["head"])
    config = ConvertConfig(tmp_path / "peft", "peft", "parts", NAME, random_weights=True, out=tmp_path / "run")
    assert_equal(of_bundle(config, files)[1], of_library(tuned, timm_reads(model), files))


@pytest.mark.parametrize(
    "settings",
    [{}, {"crop_pct": 0.87, "interpolation": "bilinear"}, {"crop_mode": "squash", "crop_pct": 1.0, "mean": [0.4] * 3}],
    ids=str,
)
def test_a_checkpoint_of_timms_training_script(tmp_path: Path, files: list[Path], settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(NAME, num_classes=CLASSES)
    randomise(model)
    torch.save({"state_dict": model.state_dict(), "arch": NAME, "epoch": 3}, tmp_path / "model_best.pth.tar")
    (tmp_path / "args.yaml").write_text(json.dumps({"model": NAME, "num_classes": CLASSES, "gp": None, **settings}))
    config = timms(tmp_path / "model_best.pth.tar", tmp_path / "run", random_weights=True)
    assert_equal(of_bundle(config, files)[1], of_library(model, timm_reads(model, **settings), files))


def test_a_model_of_timms_hub(tmp_path: Path, files: list[Path]) -> None:
    cfg = {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4], "crop_pct": 0.81, "interpolation": "bilinear"}
    torch.manual_seed(0)
    model: Any = timm.create_model(NAME, num_classes=CLASSES, pretrained_cfg_overlay=cfg)
    randomise(model)
    names = ["ant", "bee", "cat", "dog", "elk"]
    timm.models.save_for_hf(model, str(tmp_path), model_config={"label_names": names}, safe_serialization=True)
    config = timms(tmp_path / "model.safetensors", tmp_path / "run", random_weights=True)
    bundle, given = of_bundle(config, files)
    assert bundle.record.classes == tuple(names)
    assert_equal(given, of_library(model, timm_reads(model), files))


def test_a_model_of_timm_inside_transformers(tmp_path: Path, files: list[Path]) -> None:
    cfg = {"architecture": NAME, "num_classes": CLASSES, "pretrained_cfg": timm.create_model(NAME).pretrained_cfg}
    model: Any = transformers.TimmWrapperForImageClassification(transformers.TimmWrapperConfig.from_dict(cfg))
    randomise(model)
    model.save_pretrained(tmp_path)
    automatic: Any = transformers.AutoImageProcessor
    read = automatic.from_pretrained(tmp_path)
    config = timms(tmp_path / "model.safetensors", tmp_path / "run", random_weights=True)
    assert_equal(of_bundle(config, files)[1], of_library(model, transformers_reads(read), files))


def test_a_head_on_a_frozen_backbone(tmp_path: Path, files: list[Path]) -> None:
    model = load_backbone(NAME, Weights("random"), CLASSES)
    randomise(model.get_classifier())
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    bundle, given = of_bundle(timms(tmp_path / "w.safetensors", tmp_path / "run", random_weights=True), files)
    assert bundle.record.method == "linear"
    assert_equal(given, of_library(model, timm_reads(model), files))
