import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.paper import Config, fleet, grid, shares
from benchmarks.paper_estimate import Speed
from benchmarks.paper_runs import BACKBONE, Row, planned, task_file
from benchmarks.paper_tables import tables
from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.utils.command_line import parse
from tests.support.miniatures import cub, vtab_lists
from training.fleet.options import FleetConfig
from training.tasks import BENCHMARKS
from training.tasks.published import PUBLISHED

SPEED = Speed(tuned=1000.0, answered=2000.0)

Make = Callable[..., Config]


@pytest.fixture
def config(tmp_path: Path) -> Make:
    def make(**options: Any) -> Config:
        (tmp_path / "data").mkdir(exist_ok=True)
        given = {"data_dir": tmp_path / "data", "out": tmp_path / "out", "work": tmp_path / "work"}
        return Config(**given | options)

    return make


def row(task: str, seed: int, test: float, recipe: str = "paper") -> Row:
    return Row(task, recipe, "mosa", seed, 1000, 100, 300_000, 0.9, test, "1000", BACKBONE, "a machine", "abc")


def cells(text: str, task: str) -> list[str]:
    (line,) = (line for line in text.split("\n") if line.startswith(f"| {task} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_grid_has_every_task_recipe_and_seed() -> None:
    runs = planned(BENCHMARKS, ["paper", "ours"], ["mosa"], 3)
    assert len({run.name for run in runs}) == len(runs) == 27 * 2 * 3
    assert [run.task for run in runs[:27]] == [*BENCHMARKS]


def test_a_run_is_tuned_by_the_recipe_and_on_the_images_of_published_tables(tmp_path: Path) -> None:
    vtab_lists(tmp_path / "vtab-1k" / "eurosat")
    paper, ours = planned([task for task in BENCHMARKS if task.name == "vtab/eurosat"], ["paper", "ours"], ["mosa"], 1)
    common = {"backbone": "vit", "device": "cuda"}
    assert paper.options(tmp_path, common) == {
        **{"task": "vtab/eurosat", "data_dir": str(tmp_path / "vtab-1k" / "eurosat"), "recipe": "paper"},
        **{"split": "1000", "method": "mosa", "seed": 0, "skip_duplicates": True, "backbone": "vit", "device": "cuda"},
    }
    assert "split" not in ours.options(tmp_path, common)
    text = task_file([paper], tmp_path, common)
    assert text.startswith('[tasks."vtab-eurosat.paper.mosa.0"]\ntask = "vtab/eurosat"\n')
    assert "skip_duplicates = true\n" in text


def test_hours_are_images_by_speed() -> None:
    (run,) = planned([task for task in BENCHMARKS if task.name == "vtab/eurosat"], ["paper"], ["mosa"], 1)
    seconds = 100 * 1000 / 1000 + (100 * 200 + 5400) / 2000
    assert SPEED.hours(run) == pytest.approx(seconds / 3600)
    assert SPEED.hours(replace(run, method="linear")) == pytest.approx(6400 / 2000 / 3600)
    ours = replace(run, recipe="ours")
    epochs = ours.settings.epochs
    assert SPEED.hours(ours) == pytest.approx((epochs * 800 / 1000 + (epochs * 200 + 5400) / 2000) / 3600)


def test_the_speed_is_what_was_measured() -> None:
    speed = Speed.measured()
    assert (round(speed.tuned), round(speed.answered)) == (1224, 2540)


def test_gpus_share_the_hours() -> None:
    runs = planned(BENCHMARKS, ["paper"], ["mosa"], 1)
    own = shares(runs, ["0", "1"], SPEED)
    assert sorted(run.name for given in own.values() for run in given) == sorted(run.name for run in runs)
    loads = [sum(map(SPEED.hours, given)) for given in own.values()]
    assert max(loads) < 1.05 * min(loads)


def test_a_fleet_has_a_gpu_or_a_cluster_whose_gpus_its_runs_share(config: Make) -> None:
    line, own = fleet(config(jobs=2), "3")
    assert (line[-2:], own) == (["--jobs", "2"], {"CUDA_VISIBLE_DEVICES": "3"})
    assert fleet(config(device="cpu"), "0")[1] == {}
    line, own = fleet(config(ray="auto", jobs=4), "ray")
    assert (line[-4:], own) == (["--ray", "auto", "--gpus", "0.25"], {})
    assert fleet(config(ray="auto", device="cpu"), "ray")[0][-2:] == ["--ray", "auto"]
    assert parse(FleetConfig, "", line[3:]).gpus == 0.25


def test_a_dry_run_says_what_is_missing_and_writes_nothing(config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    given = config(tables="vtab", dry_run=True, backbone=EMBEDDED, device="cpu")
    assert grid(given)
    said = capsys.readouterr().out
    assert "114 runs, 0 of them finished: about " in said
    assert "missing: images of 19 of 19 tasks, which are left out" in said
    assert f"missing: no data set is in {given.data_dir}" in said
    assert "  vtab-1k/eurosat/ holds images/ beside train800.txt" in said
    assert cells(said, "eurosat")[-2:] == ["not measured", "not measured"]
    assert not given.out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says that there is no GPU")
def test_without_a_gpu_it_says_so_and_the_tables_are_not_measured(config: Make, tmp_path: Path) -> None:
    vtab_lists(tmp_path / "data" / "vtab-1k" / "eurosat")
    given = config(tables="vtab,gicd", backbone=EMBEDDED)
    with pytest.raises(ConfigError, match=r"^nothing was run: no GPU: torch finds none"):
        grid(given)
    report = (given.out / "paper.md").read_text()
    assert cells(report, "mean of 19")[-1] == "not measured"
    assert "Published: no figure verified." in report
    assert not (given.out / "runs.csv").exists()


def test_figures_stand_beside_published_ones_with_their_spread() -> None:
    rows = [row("vtab/eurosat", seed, test) for seed, test in enumerate((0.951, 0.953, 0.955))]
    rows += [row("vtab/kitti", 0, 0.80)]
    text = tables(["vtab"], [("paper", "mosa"), ("ours", "mosa")], rows, 3)
    assert cells(text, "eurosat")[-2:] == ["95.3 ± 0.2", "not measured"]
    assert cells(text, "kitti")[-2] == "80.0 (1 of 3 seeds)"
    assert cells(text, "specialised")[-2] == "not measured"
    assert cells(text, "eurosat")[1] == f"{PUBLISHED['vtab/eurosat']['full']:.1f}"
    assert cells(text, "mean of 19")[1:3] == ["65.57", "52.94"]


def test_figures_of_other_images_epochs_or_backbones_are_named() -> None:
    whole = [row("vtab/eurosat", 0, 0.9)]
    assert "do not stand beside" not in tables(["vtab"], [("paper", "mosa")], whole, 1)
    few = [replace(whole[0], train=13, epochs=1, backbone="vit_toy")]
    assert tables(["vtab"], [("paper", "mosa")], few, 1).endswith(
        "These figures do not stand beside published ones: eurosat was tuned on 13 images instead of 1,000; eurosat was"
        " tuned for 1 epochs instead of 100; eurosat was tuned on vit_toy."
    )


def test_means_are_there_once_every_task_is() -> None:
    fgvc = [task.name for task in BENCHMARKS if task.group == "fgvc"]
    rows = [row(name, 0, 0.8 + i / 100) for i, name in enumerate(fgvc)]
    assert cells(tables(["fgvc"], [("paper", "mosa")], rows, 1), "mean")[-1] == "82.00"
    assert cells(tables(["fgvc"], [("paper", "mosa")], rows[1:], 1), "mean")[-1] == "not measured"
    assert cells(tables(["fgvc"], [("paper", "mosa")], rows, 2), "mean")[-1] == "not measured"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tables": "fgcv"}, r"unknown table 'fgcv'; did you mean fgvc"),
        ({"recipe": "papers", "seeds": 0}, r"unknown recipe 'papers'; did you mean paper\?; --seeds 0: at least 1"),
        ({"tasks": "vtab/eurosad"}, r"unknown task 'vtab/eurosad'"),
        ({"methods": "moza"}, r"unknown method 'moza'"),
        ({"gpus": ","}, r"--gpus needs a name"),
    ],
)
def test_options_without_meaning_are_refused(config: Make, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config(**options)


def test_a_damaged_list_of_runs_is_named(config: Make) -> None:
    given = config(device="cpu", backbone=EMBEDDED)
    given.out.mkdir()
    (given.out / "runs.csv").write_text("task,recipe\nvtab/eurosat,paper\n")
    with pytest.raises(DataError, match=r"runs.csv is damaged \(2 columns\)"):
        grid(given)


@pytest.mark.slow
def test_a_grid_fills_its_rows_and_goes_on_from_the_csv_alone(config: Make, tmp_path: Path) -> None:
    vtab_lists(tmp_path / "data" / "vtab-1k" / "eurosat")
    cub(tmp_path / "data" / "fgvc" / "CUB_200_2011")
    trial = {"tables": "fgvc,vtab", "seeds": 1, "backbone": EMBEDDED, "device": "cpu", "epochs": 1, "gpus": "0,1"}
    assert grid(config(**trial, recipe="paper"))
    report, path = tmp_path / "out" / "paper.md", tmp_path / "out" / "runs.csv"
    with path.open(newline="") as handle:
        rows = [Row.parse(fields) for fields in csv.DictReader(handle)]
    assert {(each.task, each.train, each.split) for each in rows} == {
        ("fgvc/cub", 4, "as the data set has it"),
        ("vtab/eurosat", 13, "1000"),
    }
    assert cells(report.read_text(), "eurosat")[-1] not in ("", "not measured")
    assert cells(report.read_text(), "kitti")[-1] == "not measured"
    before = report.read_text().partition("## ")[2]
    # On another machine, which has the CSV and nothing else.
    assert grid(config(**trial, recipe="paper", work=tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()
    assert report.read_text().partition("## ")[2] == before
