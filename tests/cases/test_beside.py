"""What lies beside a source and its backbone is found, said, and compared; a wrong conversion is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
from PIL import Image
from safetensors.torch import save_file

from export.convert import convert
from export.options import ConvertConfig
from mosa_deploy.backbones.load import randomise
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.record import Record
from mosa_deploy.errors import BackboneError, ConfigError, DataError
from tests.support.peft_models import CLASSES, NAME, of_transformers, vit

NAMES = ["ant", "bee", "cat", "dog", "elk"]
ID2LABEL = {str(i): name for i, name in enumerate(NAMES)}
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 160, "width": 160}, "resample": 3}


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """peft/ with an adapter, vit/ with its base model, timm/ with a checkpoint, images/ in folders by its answers.

    Tests must not change it.
    """
    root = tmp_path_factory.mktemp("brought")
    of_transformers(root / "peft", root / "vit", target_modules=["q_proj"])
    torch.manual_seed(0)
    model: Any = timm.create_model(NAME, num_classes=CLASSES)
    randomise(model)
    (root / "timm").mkdir()
    save_file(model.state_dict(), root / "timm" / "w.safetensors")
    model.train(False)
    read = Preprocess.from_timm(timm.data.resolve_model_data_config(model))
    for i in range(24):
        noise = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        image = Image.fromarray(noise.numpy()).resize((170, 170))
        with torch.inference_mode():
            answer = int(model(torch.from_numpy(read.normalise(read.pixels(image)[None]))).argmax())
        folder = root / "images" / NAMES[answer]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.bmp")
    return root


@pytest.fixture
def here(tmp_path: Path, brought: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(brought, tmp_path / "brought"))


def write(path: Path, **fields: Any) -> None:
    """Add fields to a JSON file, which need not be there yet."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | fields))


def of_peft(here: Path, **settings: Any) -> Record:
    weights = here / "vit" / "model.safetensors"
    return bundle(ConvertConfig(here / "peft", "peft", "parts", NAME, weights, out=here / "run", **settings))


def of_timm(here: Path, **settings: Any) -> Record:
    path = here / "timm" / "w.safetensors"
    return bundle(ConvertConfig(path, "timm", "parts", NAME, random_weights=True, out=here / "run", **settings))


def bundle(config: ConvertConfig) -> Record:
    return Bundle.load(convert(config)).record


@pytest.mark.parametrize("folder", ["peft", "vit"])
def test_the_files_beside_an_adapter_or_its_backbone_are_taken(
    here: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here / folder / "preprocessor_config.json", **PROCESSOR)
    write(here / folder / "config.json", id2label=ID2LABEL)
    record = of_peft(here)
    assert record.classes == tuple(NAMES)
    assert (record.preprocess.resize, record.preprocess.interpolation) == ("squash", "bicubic")
    said = capsys.readouterr().out
    assert f"mean 0.5/0.5/0.5, std 0.5/0.5/0.5; from {here / folder / 'preprocessor_config.json'}" in said
    assert f"classes: ant, bee, cat, dog, elk; from id2label in {here / folder / 'config.json'}" in said
    assert f"backbone: norm_eps 1e-12, other than timm's {NAME}; from " in said


def test_a_processor_that_is_missing_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_peft(here)
    assert "no preprocessor_config.json was found: give --preprocess" in capsys.readouterr().out


def test_two_processors_that_differ_are_refused(here: Path) -> None:
    write(here / "peft" / "preprocessor_config.json", **PROCESSOR)
    write(here / "vit" / "preprocessor_config.json", **PROCESSOR | {"image_mean": [0.4, 0.4, 0.4]})
    with pytest.raises(ConfigError, match=r"contradict each other \(mean\): choose one with --preprocess$"):
        of_peft(here)
    assert of_peft(here, preprocess=here / "peft" / "preprocessor_config.json").preprocess.mean == (0.5, 0.5, 0.5)


def test_an_image_size_that_differs_is_refused(here: Path) -> None:
    write(here / "vit" / "preprocessor_config.json", **PROCESSOR)
    with pytest.raises(ConfigError, match=r"^--image-size 96: .*preprocessor_config\.json says 160 x 160; drop one"):
        of_peft(here, image_size=96)


def test_two_configs_that_name_other_classes_are_refused(here: Path) -> None:
    write(here / "peft" / "config.json", id2label=ID2LABEL)
    write(here / "vit" / "config.json", id2label=ID2LABEL | {"0": "zebra"})
    with pytest.raises(ConfigError, match=r"name other classes: choose with --classes"):
        of_peft(here)
    assert of_peft(here, classes=",".join(NAMES)).classes == tuple(NAMES)


def test_names_of_another_head_beside_the_backbone_are_not_taken(here: Path) -> None:
    write(here / "vit" / "config.json", id2label={str(i): f"imagenet {i}" for i in range(1000)})
    assert of_peft(here).classes == tuple(f"class{i}" for i in range(CLASSES))


def test_two_configs_with_another_activation_are_refused(here: Path) -> None:
    write(here / "peft" / "config.json", model_type="vit", hidden_act="relu", num_attention_heads=2)
    with pytest.raises(ConfigError, match=r"^act_layer is relu in .*peft/config\.json, but gelu in .*: give --act$"):
        of_peft(here)
    assert of_peft(here, act="relu").backbone.model_args is not None


@pytest.mark.parametrize("folder", ["peft", "vit"])
def test_regression_is_refused_by_name(here: Path, folder: str) -> None:
    write(here / folder / "config.json", problem_type="regression")
    with pytest.raises(ConfigError, match=r"config\.json says problem_type regression: a bundle answers with classes"):
        of_peft(here)


@pytest.mark.parametrize("folder", ["peft", "vit"])
def test_a_config_may_say_that_an_image_has_several_labels(
    here: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(here / folder / "config.json", problem_type="multi_label_classification")
    assert of_peft(here).thresholds == (0.5,) * CLASSES
    assert f"problem_type in {here}/{folder}/config.json. Each is answered from a score of 0.5 on" in (
        capsys.readouterr().out
    )


def test_a_single_output_is_refused_unless_it_is_a_label(here: Path) -> None:
    model = vit(num_labels=1)
    model.save_pretrained(here / "one")
    path = here / "one" / "model.safetensors"
    with pytest.raises(ConfigError, match=r"has 1 output, as for regression or a sigmoid.* or --multi-label if it is"):
        bundle(ConvertConfig(path, "timm", "parts", NAME, path, out=here / "run"))
    config = ConvertConfig(path, "timm", "parts", NAME, path, classes="rust", multi_label=True, out=here / "run")
    assert bundle(config).thresholds == (0.5,)


def test_folders_cannot_say_how_often_several_labels_are_right(here: Path) -> None:
    write(here / "peft" / "config.json", problem_type="multi_label_classification")
    with pytest.raises(ConfigError, match=r"^--min-accuracy: an image may have several labels \(problem_type in "):
        of_peft(here, images=here / "images", min_accuracy=0.5)


@pytest.mark.parametrize(
    "said",
    [{"id2label": NAMES[::-1]}, {"label2id": dict(zip(NAMES, (4, 3, 2, 1, 0), strict=True))}],
    ids=["list", "numbers"],
)
def test_a_config_may_name_the_classes_in_another_way(here: Path, said: dict[str, Any]) -> None:
    (here / "timm" / "config.json").write_text(json.dumps({"model_type": "vit", **said}))
    assert of_timm(here).classes == tuple(NAMES[::-1])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_that_were_saved_on_windows_are_read(here: Path, encoding: str) -> None:
    for name, content in {"preprocessor_config.json": PROCESSOR, "config.json": {"id2label": ID2LABEL}}.items():
        text = json.dumps(content, indent=2).replace("\n", "\r\n")
        (here / "peft" / name).write_bytes(text.encode(encoding))
    record = of_peft(here)
    assert (record.classes, record.preprocess.resize) == (tuple(NAMES), "squash")


@pytest.mark.parametrize("content", ["[1]", "{", ""])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_damaged_file_is_named(here: Path, name: str, content: str) -> None:
    (here / "peft" / name).write_text(content)
    with pytest.raises((BackboneError, DataError), match=rf"^\S*peft/{name} is not a JSON object"):
        of_peft(here)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"crop_mode": "border"}, r"crop_mode border: give --preprocess"),
        ({"interpolation": "random"}, r"interpolation random: Input should be 'bicubic'"),
        ({"input_size": [1, 160, 160]}, r"images of 1 channels: give --preprocess"),
        ({"model": "vit_small_patch16_224"}, r"args\.yaml is of vit_small_patch16_224, --backbone says test_vit"),
        ({"model_kwargs": {"act_layer": "mish"}}, r"args\.yaml: act_layer 'mish': give one of gelu"),
    ],
)
def test_what_timms_training_script_did_and_we_cannot_is_refused(
    here: Path, settings: dict[str, Any], fault: str
) -> None:
    (here / "timm" / "args.yaml").write_text(json.dumps({"model": NAME, **settings}))
    with pytest.raises((BackboneError, ConfigError, DataError), match=fault):
        of_timm(here)


@pytest.mark.parametrize("name", [f"hf-hub:timm/{NAME}.r160_in1k", "hf-hub:someone/their-model"])
def test_a_name_on_the_hub_is_compared_without_its_place(here: Path, name: str) -> None:
    (here / "timm" / "args.yaml").write_text(json.dumps({"model": name, "crop_pct": 0.9}))
    assert of_timm(here).preprocess.crop_pct == 0.9


def test_a_sigmoids_loss_and_resampled_positions_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "timm" / "args.yaml").write_text(json.dumps({"model": NAME, "bce_loss": True}))
    of_timm(here)
    assert "args.yaml says bce_loss: its outputs are answered as a softmax" in capsys.readouterr().out
    shutil.rmtree(here / "run")
    write(here / "vit" / "preprocessor_config.json", **PROCESSOR | {"size": {"height": 96, "width": 96}})
    of_peft(here)
    assert "has image_size 160, images are 96 x 96: the position embeddings are resampled" in capsys.readouterr().out


def test_the_accuracy_on_class_folders_is_said_with_what_it_cannot_find(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_timm(here, classes=",".join(NAMES), images=here / "images")
    said = capsys.readouterr().out
    assert "accuracy 1.000 on 24 images of --images" in said
    assert "compare some probabilities with your own library" in said


@pytest.mark.parametrize("classes", ["elk,ant,bee,cat,dog", "elk,dog,cat,bee,ant"])
def test_a_wrong_order_of_classes_is_refused_by_the_accuracy(here: Path, classes: str) -> None:
    with pytest.raises(ConfigError, match=r"^accuracy 0\.\d+ on 24 images .*below --min-accuracy 0\.6, so the class"):
        of_timm(here, classes=classes, images=here / "images")
    assert not (here / "run").exists()
    assert of_timm(here, classes=classes, images=here / "images", min_accuracy=0).classes[1] != "bee"


def test_folders_of_other_names_are_refused(here: Path) -> None:
    (here / "images" / "wasp").mkdir()
    Image.new("RGB", (170, 170)).save(here / "images" / "wasp" / "a.png")
    with pytest.raises(ConfigError, match=r"images has folders wasp, the task's classes are ant, bee, cat, dog, elk"):
        of_timm(here, classes=",".join(NAMES), images=here / "images")


def test_without_other_names_the_folders_name_the_classes(here: Path) -> None:
    for name in NAMES:
        (here / "images" / name).mkdir(exist_ok=True)
        Image.new("RGB", (170, 170)).save(here / "images" / name / "extra.png")
    assert of_timm(here, images=here / "images", min_accuracy=0).classes == tuple(NAMES)
