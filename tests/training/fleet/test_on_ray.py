"""A fleet on a Ray cluster whose worker is killed, and then its driver; and a comparison there."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mosa_deploy.bundles.bundle import Bundle
from tests.support.ray_cluster import environment, kill_parent_of, running, started
from tests.support.waiting import wait_for
from tests.support.walker import ROOT
from training.fleet.rows import read_rows

pytestmark = pytest.mark.slow

EPOCHS = 12


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster."""
    with started() as address:
        yield address


def command(folder: Path, address: str) -> list[str]:
    """The command of a fleet."""
    given = [str(folder / "tasks.toml"), "--out", str(folder / "fleet"), "--ray", address]
    return [sys.executable, "-m", "training.fleet", *given]


def test_a_fleet_survives_the_loss_of_a_worker_and_goes_on_after_its_driver_was_killed(
    cluster: str, tmp_path: Path
) -> None:
    (tmp_path / "tasks.toml").write_text(
        "[defaults]\nbackbone = 'vit_tinyd6_patch4_32.cifar10'\n"
        "[tasks.probe]\ntask = 'digits'\nmethod = 'linear'\n"
        f"[tasks.digits]\nepochs = {EPOCHS}\nshots = 20\n"
        "[tasks.lost]\ntask = 'digits'\nmethod = 'linear'\nbackbone_weights = 'gone.safetensors'\n"
    )
    (tmp_path / "gone.safetensors").write_bytes(b"no weights")
    line, run = command(tmp_path, cluster), tmp_path / "fleet" / "runs" / "digits"
    log = tmp_path / "fleet" / "logs" / "digits.log"
    digits = f'"{run}"'
    with subprocess.Popen(line, cwd=ROOT, env=environment()) as driver:
        try:
            wait_for((run / "history.csv").is_file, 600)
            kill_parent_of(digits)
            wait_for(lambda: "resumed after epoch" in log.read_text(), 600)
        finally:
            driver.kill()
    wait_for(lambda: not running("mosa_deploy.in_turn"), 30)
    before = {path: path.stat().st_mtime_ns for path in run.parent.glob("*/adapter.safetensors")}

    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 1, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert re.match(r"error: lost: tune failed: .*gone\.safetensors.*; see \S+lost\.log$", error)
    rows = {row.task: row.state for row in read_rows(tmp_path / "fleet")}
    assert rows == {"probe": "exported", "digits": "exported", "lost": "tune failed"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    epochs = re.findall(rf"^epoch (\d+)/{EPOCHS}", log.read_text(), re.MULTILINE)
    # The worker may have been killed before it said that the first epoch was finished.
    assert {*map(int, epochs)} >= {*range(2, EPOCHS + 1)}
    assert len(epochs) <= EPOCHS + 2
    assert (tmp_path / "fleet" / "store" / "tasks" / "digits" / "folded.onnx").is_file()


def test_a_comparison_on_a_cluster_has_the_runs_of_one_on_this_machine(cluster: str, tmp_path: Path) -> None:
    given = ["compare", "--tasks", "digits", "--methods", "linear", "--shots", "5,10", "--seeds", "2"]
    reports = []
    for folder, more in (("there", ["--ray", cluster]), ("here", [])):
        line = [sys.executable, "-c", "from mosa_deploy.cli import main; main()", *given, "--out", folder, *more]
        subprocess.run(line, cwd=tmp_path, env=environment(), timeout=600, check=True, stdout=subprocess.DEVNULL)
        runs = {path.parent: Bundle.load(path.parent).digest for path in (tmp_path / folder).rglob("adapter.json")}
        reports.append({path.relative_to(tmp_path / folder): digest for path, digest in runs.items()})
    assert len(reports[0]) == 4
    assert reports[0] == reports[1]
    assert (tmp_path / "there" / "compare.csv").read_text() == (tmp_path / "here" / "compare.csv").read_text()
