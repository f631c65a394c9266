"""Which stages of a task are finished, by their files alone, and what came of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mosa_deploy.bundles.record import read_record
from training.config import TuneConfig
from training.fleet.options import FleetConfig
from training.fleet.rows import Failure, Row
from training.fleet.stages import FleetTask, Notes


@pytest.fixture
def task(tmp_path: Path, digits_run: Path, store: Path) -> FleetTask:
    """A task that is tuned and exported, but not evaluated; one that asked for `auto`."""
    fleet = FleetConfig(tmp_path / "tasks.toml", out=tmp_path / "fleet", store=store)
    found = FleetTask(TuneConfig("digits", method="auto", backbone_weights=Path("weights")), fleet)
    shutil.copytree(digits_run, found.folder)
    return found


def test_each_stage_is_a_command_line_and_goes_on_where_there_is_a_run(task: FleetTask) -> None:
    folder, weights = str(task.folder), ["--backbone-weights", "weights"]
    tune = ["tune", "--task", "digits", *weights, "--method", "auto", "--out", folder]
    assert task.line("tune") == [*tune, "--resume"]
    assert task.line("evaluate") == ["evaluate", "--bundle", folder, *weights]
    assert task.line("export") == ["export", "--bundle", folder, "--out", str(task.fleet.store), *weights]
    shutil.rmtree(task.folder)
    assert task.line("tune") == tune
    to = replace(task, fleet=replace(task.fleet, to="http://localhost:1", new_classes=True))
    assert to.line("deploy") == ["deploy", str(task.exported), "--to", "http://localhost:1", "--new-classes"]


def test_what_is_evaluated_has_its_figures(task: FleetTask) -> None:
    assert task.waiting() == ["evaluate"]
    task.evaluation.parent.mkdir()
    task.evaluation.write_text(json.dumps({"accuracy": 0.5}))
    assert task.waiting() == []


def test_an_export_of_another_run_is_repeated(task: FleetTask) -> None:
    record = read_record(task.folder)
    assert record.form == "split"
    (task.folder / "adapter.json").write_text(record.model_copy(update={"seed": 1}).model_dump_json())
    assert task.waiting() == ["evaluate", "export"]


def test_a_deployment_is_noted_with_its_address_and_digest(task: FleetTask) -> None:
    to = replace(task, fleet=replace(task.fleet, to="http://localhost:1"), tested=False)
    assert to.waiting() == ["deploy"]
    to.ended("deploy", 2.0, finished=False)
    assert to.waiting() == ["deploy"]
    to.ended("deploy", 3.0, finished=True)
    assert to.waiting() == []
    assert Notes.read(to.notes).seconds == {"deploy": 5.0}
    assert replace(to, fleet=replace(to.fleet, to="http://localhost:2")).waiting() == ["deploy"]


def test_a_row_says_what_auto_chose_and_what_failed(task: FleetTask, store: Path) -> None:
    task.ended("tune", 2.0, finished=True)
    task.ended("export", 1.0, finished=True)
    row = Row.of(task, Failure("evaluate", "there is no test set"))
    exported = read_record(store / "tasks" / "digits")
    assert (row.asked, row.method, row.bundle) == ("auto", "mosa", exported.sha256)
    assert (row.validation, row.test) == (exported.metrics["validation_accuracy"], None)
    assert (row.state, row.fault, row.tune_seconds, row.seconds) == ("evaluate failed", "there is no test set", 2, 3)


def test_a_task_that_was_not_reached_has_no_figures(tmp_path: Path) -> None:
    task = FleetTask(TuneConfig("digits"), FleetConfig(tmp_path / "tasks.toml", out=tmp_path / "fleet"))
    row = Row.of(task, Failure("tune", "no"))
    assert (row.method, row.validation, row.test, row.bundle, row.run) == ("", None, None, "", "")
