import dataclasses
import json
from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError
from training.config import Recipe, TuneConfig, describe, differences

PRESET = Recipe(backbone="vit_toy", experts=4, passes=2, lr=1e-3)


def test_every_fault_is_named_at_once_in_one_line() -> None:
    config = TuneConfig(task="digits", epochs=0, batch_size=0, lr=-1.0, bottleneck=0, experts=300, share="sideways")
    with pytest.raises(ConfigError) as caught:
        config.recipe(PRESET)
    text = str(caught.value)
    assert "\n" not in text
    for words in ("--epochs 0", "--batch-size 0", "--lr -1.0", "--bottleneck 0", "--experts 300", "'sideways'"):
        assert words in text


def test_unknown_method_offers_the_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"^unknown method 'moza'; did you mean mosa\?$"):
        TuneConfig(task="digits", method="moza").checked_method()


def test_adapter_is_one_expert_and_one_pass_and_else_as_preset() -> None:
    recipe = TuneConfig(task="digits", method="adapter", experts=8).recipe(PRESET)
    assert recipe == dataclasses.replace(PRESET, experts=1, passes=1)


def test_flags_replace_the_preset_and_the_rest_stays() -> None:
    recipe = TuneConfig(task="digits", scale=0.0, epochs=3, backbone="vit_other").recipe(PRESET)
    assert recipe == dataclasses.replace(PRESET, scale=0.0, epochs=3, backbone="vit_other")


def test_config_json_holds_every_option_but_where_and_how_it_runs() -> None:
    described = json.loads(describe(TuneConfig(task="digits", data_dir=Path("images")), PRESET))
    options = {field.name for field in dataclasses.fields(TuneConfig)} - {"out", "resume", "device"}
    assert described.keys() == options | {field.name for field in dataclasses.fields(Recipe)}
    assert described["data_dir"] == "images"


def test_differences_name_the_changed_settings_only() -> None:
    old = TuneConfig(task="digits", seed=1)
    new = TuneConfig(task="digits", seed=2, lr=0.1)
    changed = differences(describe(old, old.recipe(PRESET)), describe(new, new.recipe(PRESET)))
    assert changed == ["lr was 0.001, is 0.1", "seed was 1, is 2"]
