"""A whole fleet: one that is finished, and one that is killed on the way."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mosa_deploy.errors import ConfigError
from tests.support.images import write_jpegs
from tests.support.waiting import wait_for
from tests.support.walker import ROOT
from training.fleet.fleet import alone, print_fleet
from training.fleet.options import FleetConfig
from training.fleet.rows import read_rows


@pytest.fixture
def finished(tmp_path: Path, digits_run: Path, store: Path) -> FleetConfig:
    """A fleet of one task, of which nothing is left to do."""
    (tmp_path / "tasks.toml").write_text("[tasks.digits]\nepochs = 1\nbottleneck = 4\n")
    config = FleetConfig(tmp_path / "tasks.toml", out=tmp_path / "fleet", store=store)
    folder = config.out / "runs" / "digits"
    shutil.copytree(digits_run, folder)
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "metrics.json").write_text(json.dumps({"accuracy": 0.5}))
    return config


def times(folder: Path) -> dict[Path, int]:
    """When each file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_fleet_is_told_of_and_nothing_is_done_again(
    finished: FleetConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, exported = times(finished.out / "runs"), times(finished.store_folder)
    print_fleet(finished)
    assert (times(finished.out / "runs"), times(finished.store_folder)) == (runs, exported)
    assert not (finished.out / "logs").exists()
    out = capsys.readouterr().out
    assert re.search(
        r"^\| digits \| exported \| mosa \| 0\.\d{4} \| 0\.5000 \| 0 \| [0-9a-f]{12} \|$", out, re.MULTILINE
    )
    assert "1 of 1 tasks are done; written to " in out
    (row,) = read_rows(finished.out)
    assert (row.task, row.test, row.folder) == ("digits", 0.5, str(finished.store_folder / "tasks" / "digits"))


def test_an_earlier_fleet_stands_beside_and_nothing_is_switched(
    finished: FleetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_fleet(finished)
    shutil.copytree(finished.out, tmp_path / "other")
    (tmp_path / "other/runs/digits/evaluation/metrics.json").write_text(json.dumps({"accuracy": 0.75}))
    print_fleet(replace(finished, out=tmp_path / "other", beside=finished.out))
    out = capsys.readouterr().out
    assert "| 0.5000 | 0.7500 | +25.00 |" in out
    assert "Nothing was deployed: the same command with --to URL does so." in out


def test_two_fleets_do_not_work_in_one_folder(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match=r"another mosa fleet is at work there; wait for it, or give another")
    with alone(tmp_path), refused, alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


@pytest.mark.slow
def test_a_fleet_that_was_killed_goes_on_and_a_task_that_fails_stops_no_other(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "spoilt", {"cat": 10, "dog": 10})
    for path in (tmp_path / "spoilt").rglob("*.jpg"):
        path.write_bytes(b"spoilt")
    (tmp_path / "tasks.toml").write_text(
        "[defaults]\nbackbone = 'vit_tinyd6_patch4_32.cifar10'\ndevice = 'cpu'\n"
        "[tasks.probe]\ntask = 'digits'\nmethod = 'linear'\n"
        "[tasks.digits]\nepochs = 6\nshots = 20\n"
        "[tasks.spoilt]\ndata_dir = 'spoilt'\n"
    )
    command = [sys.executable, "-m", "training.fleet", str(tmp_path / "tasks.toml"), "--out", str(tmp_path / "fleet")]
    runs = tmp_path / "fleet" / "runs"
    with subprocess.Popen([*command, "--jobs", "2"], cwd=ROOT) as killed:
        try:
            wait_for((runs / "digits" / "history.csv").is_file, 600)
            children = psutil.Process(killed.pid).children(recursive=True)
        finally:
            killed.kill()
    assert len(children) >= 3  # the server, and two for each task
    assert not psutil.wait_procs(children, timeout=30)[1]
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/adapter.safetensors")}

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 1, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert re.match(r"error: spoilt: tune failed: .*unreadable.*; see \S+spoilt\.log$", error)
    rows = {row.task: row for row in read_rows(tmp_path / "fleet")}
    assert {name: row.state for name, row in rows.items()} == {
        "probe": "exported",
        "digits": "exported",
        "spoilt": "tune failed",
    }
    assert {path: path.stat().st_mtime_ns for path in before} == before
    epochs = re.findall(r"^epoch (\d)/6", (tmp_path / "fleet" / "logs" / "digits.log").read_text(), re.MULTILINE)
    assert sorted(set(epochs)) == list("123456")
    assert len(epochs) <= 7
    assert (tmp_path / "fleet" / "store" / "tasks" / "digits" / "folded.onnx").is_file()
