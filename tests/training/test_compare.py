import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mosa_deploy.errors import DataError
from tests.support.runs import Few, write_few
from training.compare import compare, main, validation
from training.compared import source
from training.config import TuneConfig
from training.evaluate import evaluate
from training.options import CompareConfig, EvaluateConfig
from training.recipe import Recipe
from training.result_rows import Result, Subject, accuracies, add_earlier, read_results
from training.result_table import differences, tables, write_comparison
from training.run import METRICS
from training.trials import FACTORS, flags, label, settings

PRESET = Recipe(backbone="vit_toy", lr=1e-2, scale=0.5, experts=4)


def results() -> list[Result]:
    """Two tasks, three seeds; the probe has one run, and one trial was not chosen."""
    accuracy = {
        ("a", "linear"): [0.5],
        ("a", "adapter"): [0.6, 0.7, 0.8],
        ("a", "mosa"): [0.65, 0.7, 0.9],
        ("b", "linear"): [0.2],
        ("b", "adapter"): [0.4, 0.4, 0.4],
        ("b", "mosa"): [0.3, 0.4, 0.5],
    }
    runs = [
        Result(task, method, "preset", seed, 1000, 0.5, value)
        for (task, method), values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    return [*runs, Result("a", "mosa", "lr-x2", 0, 1000, 0.4, None)]


def test_every_method_tries_as_many_settings_and_the_same_lr_and_scale() -> None:
    dense, mosa = (settings(method, 6, PRESET) for method in ("adapter", "mosa"))
    assert len(set(dense)) == len(set(mosa)) == 6
    assert dense[0] == mosa[0] == ()
    common = [[{k: v for k, v in setting if k in FACTORS} for setting in found] for found in (dense, mosa)]
    assert common[0] == common[1]
    assert {name for setting in mosa for name, _ in setting} == {"lr", "scale", "experts"}


def test_two_trials_are_the_preset_and_the_methods_own_option() -> None:
    assert settings("adapter", 2, PRESET) == [(), (("consistency", 0.3),)]
    assert settings("mosa", 2, PRESET) == [(), (("experts", 2),)]


def test_the_probes_try_what_they_have() -> None:
    assert settings("linear", 9, PRESET) == [(), (("features", "cls+mean"),), (("features", "blocks"),)]
    assert settings("attentive", 9, PRESET) == [(), (("lr", 0.5),), (("lr", 2.0),)]
    assert settings("auto", 9, PRESET) == [()]
    assert flags("attentive", (("lr", 0.5),), PRESET) == {"lr": 5e-3}
    assert flags("linear", (("features", "blocks"),), PRESET) == {"features": "blocks"}


def test_more_trials_than_settings_try_each_once() -> None:
    found = settings("mosa", 1000, PRESET)
    assert len(found) == len(set(found)) == 18


def test_a_setting_changes_the_preset_by_factors_and_values() -> None:
    setting = (("experts", 2), ("lr", 0.5), ("scale", 4.0))
    assert label(setting) == "experts-2-lr-x0.5-scale-x4"
    recipe = TuneConfig(task="digits", **flags("mosa", setting, PRESET)).resolve(PRESET)
    assert (recipe.experts, recipe.lr, recipe.scale) == (2, 5e-3, 2.0)
    assert label(()) == "preset"


def test_an_earlier_comparison_lends_the_methods_that_were_not_run_again(tmp_path: Path) -> None:
    write_comparison(tmp_path, results())
    earlier = read_results(tmp_path / "compare.csv")
    assert earlier == results()
    own = [Result("a", "mosa", "experts-2", seed, 1000, 0.5, value) for seed, value in enumerate((0.7, 0.8, 0.9))]
    both = add_earlier(own, earlier)
    assert accuracies(both, Subject("a", None), "mosa") == [0.7, 0.8, 0.9]
    np.testing.assert_allclose(differences(both, Subject("a", None), "mosa"), [0.1, 0.1, 0.1])
    assert {result.task for result in both} == {"a"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"cannot be read \(FileNotFoundError\): give a compare\.csv$"),
        ("task,method\na,mosa\n", r"has no column 'test': give a compare\.csv$"),
    ],
)
def test_an_earlier_comparison_that_is_none_is_refused_before_anything_runs(
    tmp_path: Path, content: str | None, text: str
) -> None:
    file = tmp_path / "compare.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=rf"^--beside .*compare\.csv {text}"):
        compare(CompareConfig(tasks="digits", methods="linear", beside=file, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kept", "line"), [(-10, 16), (-1, 16), (60, 2)])
def test_a_line_of_an_earlier_comparison_that_was_cut_short_is_named(tmp_path: Path, kept: int, line: int) -> None:
    file = tmp_path / "compare.csv"
    write_comparison(tmp_path, results())
    file.write_text(file.read_text()[:kept])
    with pytest.raises(DataError, match=rf"^--beside .*compare\.csv: line {line} is cut short or damaged: delete"):
        read_results(file)


def test_an_earlier_comparison_of_a_release_without_shots_is_read(tmp_path: Path) -> None:
    file = tmp_path / "compare.csv"
    file.write_text("task,method,setting,seed,parameters,validation,test\na,mosa,preset,0,1000,0.5,0.6\n")
    assert read_results(file) == [Result("a", "mosa", "preset", 0, 1000, 0.5, 0.6)]


def test_the_probes_one_run_stands_against_every_seed() -> None:
    np.testing.assert_allclose(differences(results(), Subject("a", None), "linear"), [-0.1, -0.2, -0.3])


def test_table_has_means_spreads_and_differences_in_points() -> None:
    text = tables(results())
    assert "| a | mosa | preset | 1,000 | 3 | 0.7500 | 0.1323 |" in text
    assert "| a | linear | preset | 1,000 | 1 | 0.5000 | - |" in text
    # mosa - adapter on a: 5, 0, 10; on b: -10, 0, 10; their means: -2.5, 0, 10.
    assert "| b | -20.00 (-20.00 to -20.00) | +0.00 (-24.84 to +24.84) |" in text
    assert "| mean of the tasks | -20.00 (-32.42 to -7.58) | +2.50 (-13.93 to +18.93) |" in text


def test_table_without_the_dense_adapter_has_no_differences() -> None:
    assert "above" not in tables([r for r in results() if r.method != "adapter"])


@pytest.fixture
def grid(tmp_path: Path) -> Callable[..., CompareConfig]:
    def config(**changes: Any) -> CompareConfig:
        usual = CompareConfig(tasks_file=write_few(tmp_path), seeds=2, trials=2, epochs=1, out=tmp_path / "grid")
        return replace(usual, **changes)

    return config


@dataclass(frozen=True)
class Compared:
    """A finished comparison of the small task, and the runs whose test set was read, in this order."""

    config: CompareConfig
    results: list[Result]
    evaluated: list[Path | None]

    def of(self, method: str) -> list[Result]:
        return [result for result in self.results if result.method == method]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    """A comparison with two trials and two seeds."""
    evaluated: list[Path | None] = []

    def counted(config: EvaluateConfig) -> dict[str, float]:
        evaluated.append(config.bundle)
        return evaluate(config)

    folder = tmp_path_factory.mktemp("compared")
    config = CompareConfig(tasks_file=write_few(folder), seeds=2, trials=2, epochs=1, jobs=2, out=folder / "grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.compare.evaluate", counted)
        yield Compared(config, compare(config), evaluated)


def test_each_setting_of_the_probe_is_run_once(compared: Compared) -> None:
    assert [result.seed for result in compared.of("linear")] == [0, 0]
    assert sum(result.test is not None for result in compared.of("linear")) == 1


@pytest.mark.parametrize("method", ["adapter", "mosa"])
def test_the_setting_is_chosen_by_validation_and_tested_with_every_seed(compared: Compared, method: str) -> None:
    folder = compared.config.out / Few.name / method
    trials = {result.setting for result in compared.of(method) if result.seed == 0}
    tested = [(result.setting, result.seed) for result in compared.of(method) if result.test is not None]
    assert len(trials) == 2
    best = max(trials, key=lambda setting: validation(folder / setting / "seed-0"))
    assert tested == [(best, 0), (best, 1)]


def test_each_test_set_is_read_once(compared: Compared) -> None:
    assert len(compared.evaluated) == len(set(compared.evaluated)) == 5


@pytest.mark.slow
def test_a_finished_comparison_is_read_and_nothing_is_run_again(compared: Compared) -> None:
    bundles = {path: path.stat().st_mtime_ns for path in compared.config.out.rglob("adapter.safetensors")}
    assert compare(compared.config) == compared.results
    assert len(compared.evaluated) == 5
    assert {path: path.stat().st_mtime_ns for path in compared.config.out.rglob("adapter.safetensors")} == bundles


def test_a_comparison_leaves_a_table_a_picture_and_the_figures_of_every_run(compared: Compared) -> None:
    out = compared.config.out
    with (out / "compare.csv").open(newline="") as handle:
        assert len(list(csv.DictReader(handle))) == len(compared.results)
    with Image.open(out / "compare.png") as image:
        assert min(image.size) > 200
    assert "| few | mosa |" in (out / "compare.md").read_text()
    assert all((bundle.parent / METRICS).is_file() for bundle in out.rglob("adapter.safetensors"))


@pytest.mark.slow
def test_with_shots_every_seed_draws_its_own_images_for_the_probe_too(
    tmp_path: Path, grid: Callable[..., CompareConfig]
) -> None:
    found = compare(grid(methods="linear", shots="2,6", trials=1))
    assert {(each.shots, each.seed) for each in found} == {(2, 0), (2, 1), (6, 0), (6, 1)}
    drawn = [(tmp_path / f"grid/few/shots-2/linear/preset/seed-{seed}/split.csv").read_text() for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    with Image.open(tmp_path / "grid/compare_shots.png") as image:
        assert min(image.size) > 200
    assert "| few, 2 per class | linear |" in (tmp_path / "grid/compare.md").read_text()


def test_a_folder_of_the_tasks_name_is_a_task(few: str, tmp_path: Path) -> None:
    (tmp_path / "roses").mkdir()
    (tmp_path / "tulips.tar.gz").touch()
    config = CompareConfig(tasks=few, data_dir=tmp_path)
    assert source(config, "roses", {}) == ("folder", tmp_path / "roses")
    assert source(config, "tulips", {}) == ("folder", tmp_path / "tulips.tar.gz")
    assert source(config, Few.name, {}) == (Few.name, None)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--tasks", "digit"], "unknown task 'digit'; did you mean digits?; or give --data-dir that holds"),
        (["--methods", "moza"], "unknown method 'moza'; did you mean mosa or "),
        (["--seeds", "0"], "--seeds 0: at least 1"),
        (["--gpus", "0.5"], "--gpus 0.5: more than 0, and with --ray"),
        (["--ray", "localhost:1"], "--ray localhost:1: nothing answers there"),
        (["--tasks", ","], "--tasks needs a name"),
        (["--data-dir", "nowhere"], "--data-dir nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", *flags])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {text}")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_grid_of_other_epochs_is_refused_and_kept(
    grid: Callable[..., CompareConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = grid(methods="linear", seeds=1, trials=1)
    compare(config)
    given = ["--tasks-file", str(config.tasks_file), "--methods", "linear", "--epochs", "2", "--out", str(config.out)]
    monkeypatch.setattr(sys, "argv", ["compare", *given])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    run = config.out / "few" / "linear" / "preset" / "seed-0"
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: few linear preset seed 0: --out {run} holds another run (epochs was 1, is 2)")
    assert line.endswith(f"see {run}.log")
    assert (run / "adapter.safetensors").is_file()
