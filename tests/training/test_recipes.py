"""`--recipe`: whose settings and conventions a run has, and what it says of them."""

import json
import math
from pathlib import Path

import pytest

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import ConfigError
from training.config import TuneConfig
from training.recipe import Recipe
from training.recipes import CONVENTIONS, SETTINGS, Conventions, remarks
from training.tune import tune

PRESET = Recipe(backbone="vit_toy", experts=2, scale=1.0, lr=1e-3, epochs=3)


def test_our_recipe_is_the_preset() -> None:
    assert TuneConfig(task="digits").resolve(PRESET) == PRESET


@pytest.mark.parametrize("name", ["paper", "reference"])
def test_the_papers_recipe_takes_the_presets_place_and_options_win(name: str) -> None:
    recipe = TuneConfig(task="digits", recipe=name, lr=0.5).resolve(PRESET)
    assert (recipe.backbone, recipe.recipe, recipe.lr) == ("vit_toy", name, 0.5)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.batch_size, recipe.weight_decay) == (100, 10, 128, 0.01)
    assert (recipe.bottleneck, recipe.experts, recipe.share, recipe.activate) == (16, 4, "down", "per-pass")


def test_a_low_rank_method_keeps_its_own_scale_in_the_papers_recipe() -> None:
    assert TuneConfig(task="digits", recipe="paper", method="lora").resolve(PRESET).scale == 1.0


def test_every_setting_of_the_paper_is_one_of_a_recipe() -> None:
    assert set(SETTINGS["paper"]) < set(Recipe.__dataclass_fields__)


def test_an_unknown_recipe_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^unknown recipe 'papper'; did you mean paper\?$"):
        TuneConfig(task="digits", recipe="papper").resolve(PRESET)


def test_departures_are_named_beside_what_the_recipe_says() -> None:
    given = TuneConfig(task="digits", recipe="paper", epochs=5, lr=5e-3).given()
    (said,) = remarks("paper", given)
    assert said.startswith("recipe paper, the VTAB variant: direct resize, no augmentation")
    assert said.endswith("; departures: epochs 5 instead of 100")
    assert remarks("paper", {})[0].endswith("; no departures")
    assert remarks("ours", given) == []


def test_a_run_by_the_reference_states_its_recipe_and_reads_images_as_it_does(few: str, tmp_path: Path) -> None:
    run = tune(TuneConfig(task=few, recipe="reference", bottleneck=1, epochs=1, out=tmp_path / "run", device="cpu"))
    assert json.loads((run / "config.json").read_text())["recipe"] == "reference"
    assert "departures: bottleneck 1 instead of 16, epochs 1 instead of 100" in (run / "report.md").read_text()
    bundle = Bundle.load(run)
    assert bundle.record.preprocess.resize == "squash"
    assert bundle.record.preprocess.mean == (0.485, 0.456, 0.406)
    # Its only epoch has the learning rate zero, so the head is as it started.
    assert bundle.tensors["head.bias"].tolist() == pytest.approx([-4.6] * 3)


def test_the_paper_has_none_of_the_references_habits() -> None:
    assert CONVENTIONS["paper"] == Conventions(head_bias=-math.log(99), images={"crop_mode": "squash", "crop_pct": 1.0})
