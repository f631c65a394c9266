import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.errors import ConfigError
from training.config import TuneConfig
from training.recipe import Recipe, adapter_config
from training.run_settings import describe, differences, parse_settings
from training.tune_options import ExecutionOptions, OptimOptions

PRESET = Recipe(backbone="vit_toy", experts=4, passes=2, lr=1e-3)


def test_a_recipe_has_the_adapters_own_defaults() -> None:
    assert adapter_config(Recipe(backbone="vit_toy")) == AdapterConfig()


def test_every_fault_is_named_at_once_in_one_line() -> None:
    config = TuneConfig(
        task="digits",
        epochs=0,
        batch_size=0,
        lr=-1.0,
        bottleneck=0,
        experts=300,
        share="sideways",
        passes=3,
        consistency=-1.0,
        dense_epochs=1,
        image_size=-8,
    )
    with pytest.raises(ConfigError) as caught:
        config.resolve(PRESET)
    text = str(caught.value)
    assert "\n" not in text
    for words in ("--epochs 0", "--batch-size 0", "--lr -1.0", "--bottleneck 0", "--experts 300", "'sideways'"):
        assert words in text
    assert "--image-size -8: at least 1" in text
    for words in ("--passes 3: 1 or 2", "--consistency -1.0: at least 0", "--dense-epochs 1: 0 to 0, the epochs"):
        assert words in text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("lots", "--merge-scale lots: choose expectation, learned or a number"),
        ("0", "--merge-scale 0.0: above 0"),
        ("nan", "--merge-scale nan: above 0"),
        ("inf", "--merge-scale inf: above 0"),
    ],
)
def test_merge_scale_that_cannot_be_is_named(given: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TuneConfig(task="digits", merge_scale=given).resolve(PRESET)
    assert str(caught.value) == text


@pytest.mark.parametrize(("given", "value"), [("expectation", None), ("learned", None), ("0.5", 0.5)])
def test_merge_scale_shapes_the_adapter(given: str, value: float | None) -> None:
    recipe = TuneConfig(task="digits", merge_scale=given).resolve(PRESET)
    assert adapter_config(recipe).merge_scale == value


def test_unknown_method_offers_the_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"^unknown method 'moza'; did you mean mosa or "):
        TuneConfig(task="digits", method="moza").checked_method()


@pytest.mark.parametrize("passes", [None, 1])
def test_adapter_is_one_expert_and_else_as_preset_and_flags(passes: int | None) -> None:
    preset = dataclasses.replace(PRESET, share="none", dense_epochs=3, merge_scale="learned")
    recipe = TuneConfig(task="digits", method="adapter", passes=passes).resolve(preset)
    assert recipe == dataclasses.replace(PRESET, experts=1, passes=passes or 2)


@pytest.mark.parametrize("method", ["adapter", "linear"])
def test_options_of_mosa_are_refused_elsewhere(method: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TuneConfig(task="digits", method=method, experts=8, dense_epochs=1).resolve(PRESET)
    refused = "--{} is an option of --method mosa and mosl: drop it"
    assert str(caught.value) == f"{refused.format('experts')}; {refused.format('dense-epochs')}"


@pytest.mark.parametrize("method", ["mosa", "adapter", "linear"])
def test_targets_are_refused_where_nothing_is_low_rank(method: str) -> None:
    with pytest.raises(ConfigError, match=r"^--targets is an option of --method lora and mosl: drop it$"):
        TuneConfig(task="digits", method=method, targets=("q",)).resolve(PRESET)


@pytest.mark.parametrize(("method", "experts"), [("mosl", 4), ("lora", 1)])
def test_low_rank_methods_start_from_rank_16_scale_1_on_q_and_v(method: str, experts: int) -> None:
    preset = dataclasses.replace(PRESET, bottleneck=64, scale=0.1)
    recipe = TuneConfig(task="digits", method=method).resolve(preset)
    low_rank = Recipe(backbone="vit_toy", bottleneck=16, scale=1.0, style="low-rank", targets=("q", "v"), lr=1e-3)
    assert recipe == dataclasses.replace(low_rank, experts=experts)
    adapter = adapter_config(recipe)
    assert (adapter.style, adapter.targets, adapter.experts) == ("low-rank", ("q", "v"), experts)
    given = TuneConfig(task="digits", method=method, scale=2.0, targets=("proj",)).resolve(preset)
    assert (given.scale, given.targets) == (2.0, ("proj",))


def test_repadapter_starts_from_the_papers_bottleneck_and_groups() -> None:
    recipe = TuneConfig(task="digits", method="repadapter").resolve(PRESET)
    assert (recipe.style, recipe.bottleneck, recipe.groups, recipe.experts) == ("repadapter", 8, 2, 1)
    assert (recipe.passes, recipe.consistency) == (2, 1.0)
    given = TuneConfig(task="digits", method="repadapter", groups=1, bottleneck=16).resolve(PRESET)
    assert (given.groups, given.bottleneck) == (1, 16)


def test_mosa_in_the_place_of_repadapter_has_experts_and_no_groups() -> None:
    recipe = TuneConfig(task="digits", style="repadapter").resolve(PRESET)
    assert (recipe.style, recipe.bottleneck, recipe.groups, recipe.experts) == ("repadapter", 8, None, 4)
    with pytest.raises(ConfigError, match=r"^--groups is an option of --method repadapter: drop it$"):
        TuneConfig(task="digits", style="repadapter", groups=2).resolve(PRESET)


def test_ssf_has_one_pass_and_neither_scale_nor_bottleneck() -> None:
    recipe = TuneConfig(task="digits", method="ssf").resolve(PRESET)
    assert (recipe.style, recipe.scale, recipe.dropout) == ("ssf", 1.0, 0.0)
    assert (recipe.passes, recipe.consistency, recipe.experts) == (1, 0.0, 1)
    given = TuneConfig(task="digits", method="ssf", scale=0.3, bottleneck=16)
    said = "--{} is an option of adapters with a bottleneck: --method ssf has none, drop it"
    with pytest.raises(ConfigError) as caught:
        given.resolve(PRESET)
    assert str(caught.value) == f"{said.format('bottleneck')}; {said.format('scale')}"
    assert TuneConfig(task="digits", scale=0.3, bottleneck=16).for_method("ssf").resolve(PRESET) == recipe


@pytest.mark.parametrize("style", ["pfeiffer", "houlsby"])
def test_sequential_styles_have_no_scale(style: str) -> None:
    recipe = TuneConfig(task="digits", style=style).resolve(PRESET)
    assert (adapter_config(recipe).style, adapter_config(recipe).scale) == (style, 1.0)
    with pytest.raises(ConfigError, match=rf"^--scale 0.5: {style} adapters have none, leave it out$"):
        TuneConfig(task="digits", style=style, scale=0.5).resolve(PRESET)


@pytest.mark.parametrize(
    ("method", "style", "text"),
    [
        ("mosa", "low-rank", "--style low-rank: choose --method lora or mosl"),
        ("adapter", "repadapter", "--style repadapter: choose --method repadapter or mosa"),
        ("mosa", "ssf", "--style ssf: choose --method ssf"),
        ("lora", "houlsby", "--style is an option of --method adapter and mosa: drop it"),
        ("mosa", "hulsby", "unknown style 'hulsby'; did you mean houlsby?"),
    ],
)
def test_styles_that_cannot_be_are_refused(method: str, style: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TuneConfig(task="digits", method=method, style=style).resolve(PRESET)
    assert str(caught.value) == text


def test_flags_replace_the_preset_and_the_rest_stays() -> None:
    recipe = TuneConfig(task="digits", scale=0.0, epochs=3, backbone="vit_other").resolve(PRESET)
    assert recipe == dataclasses.replace(PRESET, scale=0.0, epochs=3, backbone="vit_other")


def test_config_json_holds_every_option_but_where_and_how_it_runs() -> None:
    described = parse_settings(
        describe(TuneConfig(task="digits", data_dir=Path("images")), PRESET, "bf16"), "config.json"
    )
    groups = {"reading", "streaming", "augmentation", "optimisation", "execution", "labelling", "starting", "joining"}
    elsewhere = groups | {"out", "resume", "device", "skip_duplicates", "trials", "worth", "ema_decay"}
    options = {field.name for field in dataclasses.fields(TuneConfig)} - elsewhere
    options |= {"max_pixels", "init", "extend", "exemplars", "distil", "joint", "sampling_temperature"}
    assert described.keys() == options | {field.name for field in dataclasses.fields(Recipe)} | {"format_version"}
    assert described["data_dir"] == "images"
    assert described["precision"] == "bf16"


def test_differences_name_the_changed_settings_only() -> None:
    old = TuneConfig(task="digits", seed=1)
    new = TuneConfig(task="digits", seed=2, lr=0.1)
    before, after = (parse_settings(describe(each, each.resolve(PRESET), "fp32"), "config.json") for each in (old, new))
    assert differences(before, after) == ["lr was 0.001, is 0.1", "seed was 1, is 2"]


@pytest.mark.parametrize("content", ["", "{", "[1]", b"\xff"])
def test_a_damaged_config_json_is_one_line(content: str | bytes) -> None:
    with pytest.raises(
        ConfigError, match=r"^run/config\.json is damaged \(\w+\): copy the run again, or tune the task"
    ):
        parse_settings(content, "run/config.json")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sched": "cosin"}, r"unknown schedule 'cosin'; did you mean cosine\?"),
        ({"clip_grad": -1.0}, r"--clip-grad -1.0: at least 0"),
        ({"clip_grad": math.nan}, r"--clip-grad nan: at least 0"),
        ({"clip_grad": math.inf}, r"--clip-grad inf: at least 0"),
        ({"patience": -1}, r"--patience -1: at least 0"),
        ({"head_dropout": 1.0}, r"--head-dropout 1.0: at least 0, below 1"),
        ({"head_dropout": math.nan}, r"--head-dropout nan: at least 0, below 1"),
        ({"head_dropout": 0.5, "head_samples": 0}, r"--head-samples 0: 1 to 64"),
        ({"head_dropout": 0.5, "head_samples": 65}, r"--head-samples 65: 1 to 64"),
        ({"head_samples": 8}, r"--head-samples 8: without --head-dropout all samples are the same"),
    ],
)
def test_an_update_that_cannot_be_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{text}$"):
        TuneConfig(task="digits", optimisation=OptimOptions(**options)).resolve(PRESET)


def test_patience_might_end_a_run_before_its_dense_epochs() -> None:
    with pytest.raises(ConfigError, match=r"^--patience excludes --dense-epochs: the run might end before them$"):
        TuneConfig(task="digits", dense_epochs=1, optimisation=OptimOptions(patience=3)).resolve(PRESET)


def test_the_reference_has_an_optimiser_of_its_own() -> None:
    config = TuneConfig(task="digits", recipe="reference", optimisation=OptimOptions(opt="sgd"))
    with pytest.raises(ConfigError, match=r"^--opt sgd: --recipe reference has an optimiser of its own$"):
        config.resolve(PRESET)


@pytest.mark.parametrize("method", ["linear", "attentive"])
@pytest.mark.parametrize(
    ("groups", "flag"),
    [
        ({"optimisation": OptimOptions(opt="sgd")}, "--opt"),
        ({"optimisation": OptimOptions(patience=0)}, "--patience"),
        ({"execution": ExecutionOptions(accumulate=2)}, "--accumulate"),
        ({"execution": ExecutionOptions(compile=True)}, "--compile"),
    ],
)
def test_probes_have_no_training_loop(method: str, groups: dict[str, Any], flag: str) -> None:
    config = TuneConfig(task="digits", method=method, **groups)
    with pytest.raises(ConfigError, match=rf"^{flag} is for methods that tune the backbone: drop it$"):
        config.resolve(PRESET)
    config.for_probes().resolve(PRESET)


def test_parts_of_a_batch_are_at_least_one() -> None:
    with pytest.raises(ConfigError, match=r"^--accumulate 0: at least 1$"):
        ExecutionOptions(accumulate=0)


def test_ema_has_a_usual_decay_and_may_have_another() -> None:
    off, on = TuneConfig(task="digits"), TuneConfig(task="digits", ema=True)
    configs = (off, on, dataclasses.replace(on, ema_decay=0.9))
    assert [config.resolve(PRESET).ema for config in configs] == [0.0, 0.99, 0.9]
    with pytest.raises(ConfigError, match=r"^--ema-decay 1\.5: at least 0, below 1$"):
        TuneConfig(task="digits", ema_decay=1.5).resolve(PRESET)
