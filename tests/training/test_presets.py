"""The backbone and the size of the images, where the user leaves them out, and what a run says of them."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from mosa_deploy.backbones.names import DEFAULT, DINOV2_S, DINOV3, EMBEDDED
from mosa_deploy.bundles.record import read_record
from mosa_deploy.errors import BackboneError
from tests.support.images import write_jpegs
from training.config import TuneConfig
from training.presets import TOY, backbone_remarks, choose_image_size, preset
from training.tasks import TASKS
from training.tasks.base import REAL
from training.tune import tune

OTHER = "vit_base_patch16_224.augreg_in21k"

REAL_TASKS = ("folder", "cifar10", "eurosat")


def test_only_digits_and_sprites_take_the_toy_without_being_asked() -> None:
    backbones = {name: preset(task, None).backbone for name, task in TASKS.items()}
    assert {name for name, backbone in backbones.items() if backbone == EMBEDDED} == {
        *("digits", "sprites-location", "sprites-orientation", "sprites-labels")
    }
    assert {backbones[name] for name in REAL_TASKS} == {DEFAULT}


def test_presets_for_real_backbones_draw_experts_as_was_confirmed() -> None:
    drawn = {(each.experts, each.scale, each.activate) for each in (TASKS[name].recipe for name in REAL_TASKS)}
    assert drawn == {(2, 0.3, "balanced")}


def test_the_toy_and_other_backbones_have_presets_of_their_own() -> None:
    assert preset(TASKS["folder"], EMBEDDED) == TOY
    assert preset(TASKS["digits"], DINOV2_S.name) == REAL
    assert preset(TASKS["eurosat"], OTHER) == TASKS["eurosat"].recipe
    assert preset(TASKS["digits"], EMBEDDED) == TASKS["digits"].recipe


@pytest.mark.parametrize(
    ("backbone", "device", "expected"),
    [
        (DEFAULT, "cpu", 98),
        (DINOV2_S.name, "cuda", 224),
        (DINOV3, "cpu", 96),
        (DINOV3, "cuda", 256),
        (OTHER, "cpu", None),
        (EMBEDDED, "cpu", None),
    ],
)
def test_the_size_of_the_images_suits_backbone_and_device(backbone: str, device: str, expected: int | None) -> None:
    assert choose_image_size(TuneConfig(task="folder"), backbone, device) == expected
    assert choose_image_size(TuneConfig(task="folder", image_size=126), backbone, device) == 126


def said(device: str = "cpu", **options: object) -> str:
    """What a run on a folder says of its backbone."""
    config = TuneConfig(task="folder", **options)  # type: ignore[arg-type] # the options of one test each
    recipe = config.resolve(preset(TASKS["folder"], config.backbone))
    return "\n".join(backbone_remarks(config, recipe, choose_image_size(config, recipe.backbone, device), device))


def test_a_run_says_what_was_chosen_and_why_and_how_to_choose_otherwise() -> None:
    assert said() == (
        f"chosen for you: {DEFAULT}, which is DINOv2 ViT-S/14, images of 98 x 98 pixels, adapters in all blocks (two"
        " cores then tune on 250 images within ten minutes); --backbone (see `mosa backbone list`), --image-size (224"
        " sees more and takes six times as long), --adapt-blocks choose otherwise"
    )
    assert "images of 224 x 224 pixels, adapters in all blocks (a GPU is here); --backbone" in said("cuda")


def test_what_the_user_chose_is_not_told_again() -> None:
    assert said(backbone=DEFAULT, method="linear") == (
        "chosen for you: images of 98 x 98 pixels (two cores then tune on 250 images within ten minutes); --image-size"
        " (224 sees more and takes six times as long) choose otherwise"
    )
    assert "--adapt-blocks" not in said(adapt_blocks=4)
    assert said(backbone=DEFAULT, image_size=98) == said(backbone=OTHER) == ""


def test_a_run_on_the_toy_says_what_it_is(digits_run: Path) -> None:
    line = (
        f"{EMBEDDED} is a toy to try things with: it sees 32 pixels, and has seen CIFAR-10 alone. For real work take"
        " another: `mosa backbone list`"
    )
    assert said(backbone=EMBEDDED) == line
    assert f"- {line}\n" in (digits_run / "report.md").read_text()


def test_a_folder_is_tuned_on_the_real_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = write_jpegs(tmp_path / "images", {"dark": 6, "light": 6}, size=32), tmp_path / "run"
    config = TuneConfig(task="folder", random_weights=True, method="linear", data_dir=images, out=out, device="cpu")
    tune(config)
    record, settings = read_record(out), json.loads((out / "config.json").read_text())
    assert (record.backbone.name, record.preprocess.size, settings["image_size"]) == (DEFAULT, (98, 98), 98)
    line = f"chosen for you: {DEFAULT}, which is DINOv2 ViT-S/14, images of 98 x 98 pixels (two cores"
    assert line in capsys.readouterr().out
    assert line in (out / "report.md").read_text()


def test_without_a_hub_a_folder_is_one_error_with_the_ways_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSA_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    images = write_jpegs(tmp_path / "images", {"dark": 6, "light": 6}, size=32)
    with pytest.raises(BackboneError) as caught:
        tune(TuneConfig(task="folder", data_dir=images, out=tmp_path / "run", device="cpu"))
    text = str(caught.value)
    assert text.startswith(f"no weights for {DEFAULT}: tried ")
    for way in ("--backbone-weights FILE", "`mosa backbone get dinov2-s --from-index`", f"--backbone {EMBEDDED}"):
        assert way in text
    assert "\n" not in text
    assert not (tmp_path / "run").exists()
