"""Evaluation on folders that a run was not tuned on: a test set that came later, other photos, none at all."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.errors import ConfigError, DataError
from tests.support.images import write_jpegs
from tests.support.runs import Once
from training.arguments import tune_config
from training.config import TuneConfig
from training.evaluate import ImageSettings, evaluate, image_settings, print_evaluation
from training.options import EvaluateConfig
from training.tune import tune

COUNTS = {"ash": 10, "oak": 10}


@pytest.fixture(scope="module")
def run(once: Once) -> Path:
    """A run on train and validation alone, split as `--split` says."""

    def make(out: Path) -> None:
        write_jpegs(out / "images" / "Training", COUNTS, size=32)
        write_jpegs(out / "images" / "dev", COUNTS, size=32)
        tune(
            TuneConfig(
                task="folder",
                backbone=EMBEDDED,
                method="linear",
                data_dir=out / "images",
                out=out / "run",
                device="cpu",
            )
        )

    return once("evaluated-folders", make) / "run"


def test_the_report_of_a_run_without_a_test_set(run: Path) -> None:
    report = (run / "report.md").read_text()
    assert "**There is no test set**" in report
    assert "mosa evaluate --bundle " in report
    assert "--data-dir FOLDER" in report


def test_a_run_without_a_test_set_is_not_evaluated_on_something_else(run: Path) -> None:
    with pytest.raises(DataError) as caught:
        evaluate(EvaluateConfig(bundle=run, data_dir=run.parent / "images", device="cpu"))
    assert str(caught.value) == (
        f"there is no test set in {run.parent / 'images'}: give --data-dir FOLDER that holds test/<class>/<file>; the"
        " figures on validation are in the run's report.md"
    )


def test_a_test_folder_alone_is_evaluated_whole(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jpegs(tmp_path / "Testing", {"ash": 4, "oak": 3}, size=32)
    print_evaluation(EvaluateConfig(bundle=run, data_dir=tmp_path, out=tmp_path / "out", device="cpu"))
    printed = capsys.readouterr().out
    assert "7 test images, as the folders say: a test set alone\n" in printed
    assert re.search(r"accuracy [\d.]+", printed)


def test_nothing_is_tuned_on_a_test_folder_alone(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "images" / "test", COUNTS)
    with pytest.raises(DataError) as caught:
        tune(TuneConfig(task="folder", data_dir=tmp_path / "images", out=tmp_path / "run", device="cpu"))
    assert str(caught.value) == (
        f"--data-dir {tmp_path / 'images'} holds a test set alone: add train/<class>/<file> to tune on, or evaluate a"
        " tuned task on it"
    )
    assert not (tmp_path / "run").exists()


def test_class_folders_without_sets_say_how_many_of_them_are_evaluated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jpegs(tmp_path, COUNTS, size=32)
    evaluate(EvaluateConfig(bundle=run, data_dir=tmp_path, device="cpu"))
    assert capsys.readouterr().out == (
        f"4 test images, 60/20/20, stratified; 16 others in {tmp_path} are not evaluated: below {tmp_path}/test, all"
        " would be\n"
    )


@pytest.mark.parametrize("place", ["copy", "copy/test"])
def test_images_that_the_run_was_tuned_on_are_told_wherever_they_lie(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    for label in COUNTS:
        (tmp_path / place / label).mkdir(parents=True)
        for i in range(1, 9):
            name = f"{label}_{i}.jpg"
            (tmp_path / place / label / f"other-{i}.jpg").write_bytes(
                (run.parent / "images" / "Training" / label / name).read_bytes()
            )
    evaluate(EvaluateConfig(bundle=run, data_dir=tmp_path / "copy", device="cpu"))
    count = 16 if place.endswith("test") else 4
    assert f"warning: {count} of {count} test images are images on which {run} was tuned or selected, such as " in (
        capsys.readouterr().err
    )


def test_a_bundle_that_does_not_know_its_images_warns_of_a_drawn_test_set(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("adapter.json", "adapter.safetensors"):
        shutil.copy(run / name, tmp_path / name)
    write_jpegs(tmp_path / "photos", COUNTS, size=32)
    evaluate(EvaluateConfig(bundle=tmp_path, data_dir=tmp_path / "photos", device="cpu"))
    assert f"warning: {tmp_path} does not say on which images it was tuned: " in capsys.readouterr().err


def test_images_that_the_run_never_saw_need_no_word(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jpegs(tmp_path / "test", COUNTS, size=48)
    evaluate(EvaluateConfig(bundle=run, data_dir=tmp_path, device="cpu"))
    assert capsys.readouterr().err == ""


def test_a_run_whose_images_have_gone_is_told_from_a_wrong_option(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        image_settings(EvaluateConfig(bundle=tmp_path / "run"), tuned_with(tmp_path / "run"), "folder")
    assert str(caught.value) == (
        f"{tmp_path / 'run'} was tuned on elsewhere, which is not there in {Path.cwd()}: run the command where the task"
        " was tuned, or give --data-dir"
    )


def test_a_validation_folder_alone_is_told_how_to_be_evaluated(run: Path, tmp_path: Path) -> None:
    write_jpegs(tmp_path / "val", COUNTS)
    with pytest.raises(DataError, match=r"or name a single set `test` to evaluate a tuned task on it$"):
        evaluate(EvaluateConfig(bundle=run, data_dir=tmp_path, device="cpu"))


def tuned_with(folder: Path, **settings: object) -> Path:
    """A run of which only its settings are there."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"format_version": 2, "data_dir": "elsewhere", **settings}))
    return folder


def test_a_runs_split_says_nothing_about_another_test_folder(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "images" / "Test", COUNTS)
    run = tuned_with(tmp_path / "run", split="80-10-10")
    config = EvaluateConfig(bundle=run, data_dir=tmp_path / "images")
    assert image_settings(config, run, "folder") == ImageSettings(tmp_path / "images", None, (), None)


def test_a_runs_split_holds_for_its_own_images_in_another_place(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "images", COUNTS)
    run = tuned_with(tmp_path / "run", split="80-10-10")
    config = EvaluateConfig(bundle=run, data_dir=tmp_path / "images")
    assert image_settings(config, run, "folder") == ImageSettings(tmp_path / "images", "80-10-10", (), None)


def test_a_task_that_draws_its_images_is_evaluated_on_a_folder_of_others(tmp_path: Path) -> None:
    run = tuned_with(tmp_path / "run")
    config = EvaluateConfig(bundle=run, data_dir=tmp_path)
    assert image_settings(config, run, "digits") == ImageSettings(tmp_path, None, (), None, "folder")


@pytest.mark.parametrize("option", ["--data-dir", "--split"])
def test_options_that_a_built_in_task_would_ignore_are_refused(tmp_path: Path, option: str) -> None:
    value = str(tmp_path) if option == "--data-dir" else "80-10-10"
    with pytest.raises(ConfigError) as caught:
        tune_config(["--task", "digits", option, value])
    assert str(caught.value) == (
        "--task digits brings its own images and split: leave out --data-dir and --split, or tune on a folder with"
        " --task folder"
    )
