"""Methods that tune the backbone itself: `full` and `bitfit`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mosa_deploy.adapters.attach import task_state
from mosa_deploy.backbones.names import DEFAULT, EMBEDDED
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, BackboneMethod
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import ConfigError
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy
from tests.support.runs import write_few
from training.compare import compare
from training.config import TuneConfig
from training.loop import Trainer
from training.options import CompareConfig
from training.presets import TOY, backbone_remarks
from training.recipe import Recipe
from training.tasks.base import REAL
from training.trials import centre, flags, settings
from training.tune_options import OptimOptions

RECIPE = Recipe(backbone="toy", experts=1, epochs=2, batch_size=8, lr=1e-2, passes=1, consistency=0.0, ema=0.5)


def make_trainer(toy: Toy, method: BackboneMethod, **changes: Any) -> Trainer:
    train, validation = random_images(20, 3), random_images(9, 3, seed=1)
    recipe = replace(RECIPE, **changes)
    return Trainer(toy(num_classes=3), train, validation, PREPROCESS, recipe, seed=0, method=method)


@pytest.mark.parametrize("method", BACKBONE_METHODS)
def test_all_that_the_task_owns_learns_and_nothing_else(toy: Toy, method: BackboneMethod) -> None:
    trainer = make_trainer(toy, method)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit(lambda _: None)
    after = trainer.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == task_state(trainer.model, method).keys()


@pytest.mark.parametrize("method", BACKBONE_METHODS)
def test_a_checkpoint_of_an_epoch_ends_as_an_unbroken_run(toy: Toy, method: BackboneMethod, tmp_path: Path) -> None:
    changes = {"passes": 2, "consistency": 1.0, "drop_path": 0.3, "layer_decay": 0.5}
    unbroken = make_trainer(toy, method, **changes)
    unbroken.fit(lambda trainer: trainer.save(tmp_path / f"{trainer.state.epoch}.pt"))
    again = make_trainer(toy, method, **changes)
    again.load(tmp_path / "1.pt")
    again.fit(lambda _: None)
    wanted, given = (task_state(trainer.model, method) for trainer in (unbroken, again))
    assert all(torch.equal(value, given[name]) for name, value in wanted.items())
    seen = [[{**row, "images_per_second": 0.0} for row in trainer.state.history] for trainer in (unbroken, again)]
    assert seen[0] == seen[1]
    assert seen[0][-1]["consistency"] > 0


def test_each_block_learns_at_a_fraction_of_the_rate_of_the_next_and_the_head_at_the_whole(toy: Toy) -> None:
    trainer = make_trainer(toy, "full", layer_decay=0.5, warmup_epochs=0.0)
    row = trainer.run_epoch(0)
    of = {parameter: group["lr"] for group in trainer.optimizer.param_groups for parameter in group["params"]}
    model = trainer.model
    names = ("patch_embed.proj.bias", "blocks.0.norm1.bias", "blocks.1.norm1.bias", "norm.bias", "head.bias")
    rates = [of[model.get_parameter(name)] for name in names]
    assert [rate / rates[-1] for rate in rates] == pytest.approx([0.125, 0.25, 0.5, 0.5, 1.0])
    assert row["lr"] == rates[-1]


def test_without_layer_decay_all_learn_at_one_rate(toy: Toy) -> None:
    groups = make_trainer(toy, "full").optimizer.param_groups
    assert {group.get("lr_scale", 1.0) for group in groups} == {1.0}


@pytest.mark.parametrize(
    ("method", "backbone", "expected"),
    [
        ("full", DEFAULT, (3e-4, 0.75, 0.0)),
        ("full", EMBEDDED, (1e-3, 0.75, 0.0)),
        ("bitfit", DEFAULT, (5e-3, 1.0, 0.0)),
        ("bitfit", EMBEDDED, (1e-2, 1.0, 0.0)),
    ],
)
def test_the_settings_suit_method_and_backbone(
    method: str, backbone: str, expected: tuple[float, float, float]
) -> None:
    config = TuneConfig(task="folder", method=method, backbone=backbone)
    preset = TOY if backbone == EMBEDDED else REAL
    recipe = config.resolve(preset)
    assert (recipe.lr, recipe.layer_decay, recipe.drop_path) == expected
    assert (recipe.passes, recipe.consistency, recipe.experts) == (1, 0.0, 1)
    assert centre(config, preset).lr == expected[0]
    assert settings(method, 9, recipe) == [(), (("lr", 0.5),), (("lr", 2.0),)]
    assert flags(method, (("lr", 2.0),), recipe) == {"lr": 2 * expected[0]}


def test_what_is_given_goes_before_and_passes_may_be_two() -> None:
    options = OptimOptions(layer_decay=0.9, drop_path=0.2)
    recipe = TuneConfig(task="folder", method="full", passes=2, optimisation=options).resolve(REAL)
    assert (recipe.layer_decay, recipe.drop_path, recipe.passes) == (0.9, 0.2, 2)


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("full", {"experts": 2}, "--experts is an option of --method mosa and mosl: drop it"),
        ("bitfit", {"adapt_blocks": 2}, "--adapt-blocks is an option of adapters: --method bitfit has none, drop it"),
        ("full", {"scale": 1.0}, "--scale is an option of adapters: --method full has none, drop it"),
        ("bitfit", {"recipe": "reference"}, "--recipe reference is for adapters: --method bitfit takes ours or paper"),
    ],
)
def test_options_of_adapters_are_refused(method: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TuneConfig(task="folder", method=method, **options).resolve(REAL)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("mosa", {"layer_decay": 0.5}, "--layer-decay is an option of --method full and bitfit: drop it"),
        ("linear", {"drop_path": 0.1}, "--drop-path is an option of --method full and bitfit: drop it"),
        ("full", {"layer_decay": 0.0}, "--layer-decay 0.0: above 0, at most 1"),
        ("full", {"layer_decay": 1.5}, "--layer-decay 1.5: above 0, at most 1"),
        ("bitfit", {"drop_path": 1.0}, "--drop-path 1.0: at least 0, below 1"),
    ],
)
def test_layer_decay_and_drop_path_have_methods_and_bounds(method: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TuneConfig(task="folder", method=method, optimisation=OptimOptions(**options)).resolve(REAL)
    assert str(caught.value) == text


def test_a_method_that_is_misspelt_is_named_by_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^unknown method 'bit-fit'; did you mean bitfit\?$"):
        TuneConfig(task="folder", method="bit-fit").checked_method()


def test_nothing_is_said_of_adapters() -> None:
    config = TuneConfig(task="folder", method="full")
    assert "adapters" not in "\n".join(backbone_remarks(config, config.resolve(REAL), 98, "cpu"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of both on a small task."""
    folder = tmp_path_factory.mktemp("compared")
    file, out = write_few(folder), folder / "out"
    compare(CompareConfig(tasks_file=file, methods="full,bitfit", seeds=1, epochs=1, jobs=2, out=out))
    return out


@pytest.mark.slow
def test_both_are_compared(compared: Path) -> None:
    rows = (compared / "compare.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["full", "bitfit"]
    runs = {method: compared / "few" / method / "preset" / "seed-0" for method in BACKBONE_METHODS}
    assert all(Bundle.load(run).record.method == method for method, run in runs.items())


def test_a_report_tells_no_settings_of_adapters(compared: Path) -> None:
    text = (compared / "few" / "full" / "preset" / "seed-0" / "report.md").read_text()
    (recipe,) = (line for line in text.splitlines() if line.startswith("| recipe |"))
    assert "layer decay 0.75" in recipe
    assert not [word for word in ("bottleneck", "experts", "scale", "dropout 0.1", "style") if word in recipe]
