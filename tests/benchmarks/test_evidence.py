import csv
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.evidence import Config, grid, read_plan
from mosa_deploy.errors import ConfigError
from training.tasks.base import REAL

PLAN = """
test = false
seeds = [0, 1]
[defaults]
backbone = "vit_tinyd6_patch4_32.cifar10"
shots = 3
lr = 1e-2
[tasks.digits]
task = "digits"
backbone = "vit_tinyd6_patch4_32.cifar10"
[methods.linear]
options = { method = "linear" }
settings = [{}]
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A plan of two runs."""
    (tmp_path / "small.toml").write_text(PLAN)
    return Config("small", work=tmp_path / "work", plans=tmp_path, results=tmp_path / "results")


@pytest.mark.slow
def test_a_grid_goes_on_from_its_csv_alone(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    grid(replace(config, limit=1))
    path = config.results / "small.csv"
    first = path.read_text()
    grid(config)
    assert path.read_text().startswith(first)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["task"], row["method"], row["seed"]) for row in rows] == [("digits", "linear", str(i)) for i in (0, 1)]
    assert rows[0]["validation_accuracy"] != rows[1]["validation_accuracy"]
    whole = path.read_text()
    path.write_text(whole[:-20])
    grid(config)
    assert "small.csv, line 3 is damaged" in capsys.readouterr().out
    again = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["validation_nll"] for row in again] == [row["validation_nll"] for row in rows]
    assert not list(config.work.glob("*/"))


def test_an_unknown_plan_is_told_the_known_ones(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"unknown plan 'smal'; did you mean small"):
        grid(replace(config, plan="smal"))


def test_every_method_of_the_development_plan_has_three_settings() -> None:
    jobs = read_plan(Config("develop"))
    settings = {(job.task, job.method): 0 for job in jobs}
    for job in jobs:
        settings[job.task, job.method] += 1
    assert {*settings.values()} == {3}
    assert len({job.key for job in jobs}) == len(jobs)


def test_the_plan_of_methods_has_the_tasks_images_and_budget_of_the_confirmation() -> None:
    methods, confirmed = (read_plan(Config(name)) for name in ("methods", "confirm"))
    arms = {job.method for job in methods}
    assert arms == {"ssf", "repadapter", "mosa-repadapter"}
    assert len(methods) == 5 * 5 * len(arms)
    for plan in (methods, read_plan(Config("methods-develop"))):
        assert all(job.config.resolve(REAL).style in ("ssf", "repadapter") for job in plan)
    reference = {(job.task, job.seed): job.config for job in confirmed if job.method == "mosa-balanced"}
    alike = ("data_dir", "shots", "draw", "split", "backbone", "image_size", "epochs", "batch_size", "precision")
    for job in methods:
        wanted = reference[job.task, job.seed]
        assert [getattr(job.config, name) for name in alike] == [getattr(wanted, name) for name in alike]


def test_the_plan_of_augmentation_has_arms_that_differ_in_nothing_else() -> None:
    jobs = read_plan(Config("augment"))
    assert len({job.key for job in jobs}) == len(jobs) == 9
    recipes = {job.method: job.config.resolve(REAL) for job in jobs}
    arms = {name: (recipe.augment, recipe.ema) for name, recipe in recipes.items()}
    assert arms == {
        "none": ("none", 0.0),
        "crop": ("crop", 0.0),
        "ema": ("none", 0.99),
    }
    preset = replace(REAL, backbone="vit_small_patch14_dinov2.lvd142m")
    assert {replace(recipe, augment="none", ema=0.0) for recipe in recipes.values()} == {preset}
    assert {job.config.draw for job in jobs} == {0, 1, 2}
