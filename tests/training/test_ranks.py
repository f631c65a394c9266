import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mosa_deploy.bundles.bundle import Bundle
from tests.support.two_ranks import RECIPES, trained
from training.data import cuts
from training.ranks import LOST, Ranks
from training.run import read_history

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def torchrun(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a module in two processes, each with one thread."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    words = [*TORCHRUN, *map(str, command)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_tune_what_one_does(tmp_path: Path) -> None:
    done = torchrun("tests.support.two_ranks", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, changes in RECIPES.items():
        expected, _ = trained(changes, Ranks())
        for tensor, value in expected.items():
            assert torch.equal(first[name][tensor], second[name][tensor]), name
            torch.testing.assert_close(first[name][tensor], value, rtol=1e-3, atol=1e-4, msg=f"{name}: {tensor}")


@pytest.mark.parametrize("how", ["dies", "ends"])
def test_a_process_that_dies_or_a_run_that_is_ended_is_one_line_before_the_report_of_torchrun(
    tmp_path: Path, how: str
) -> None:
    done = torchrun("tests.support.two_ranks", tmp_path, how)
    assert done.returncode != 0
    assert done.stderr.count(f"error: {LOST}\n") == 1
    assert "Traceback" not in done.stderr.partition(LOST)[0]


@pytest.mark.slow
def test_the_command_line_speaks_and_writes_once(tmp_path: Path) -> None:
    options = ("--task", "digits", "--shots", "5", "--epochs", "1", "--cache", tmp_path / "cache")
    done = torchrun("training.tune", *options, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert ", 2 processes\n" in done.stdout
    assert len(re.findall("epoch 1/1: ", done.stdout)) == 1
    assert Bundle.load(tmp_path / "run").record.method == "mosa"
    assert len(read_history(tmp_path / "run")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--lr", "-1"], "--lr -1.0: above 0"),
        (["--method", "linear"], "--method linear runs in one process: start it without torchrun or accelerate launch"),
    ],
    ids=["option", "method"],
)
def test_an_error_that_all_processes_meet_is_told_once(tmp_path: Path, options: list[str], error: str) -> None:
    done = torchrun("training.tune", "--task", "digits", *options, "--out", tmp_path / "run")
    assert done.stderr.count(f"error: {error}\n") == 1
    assert done.stderr.count("error: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_parts_of_all_processes_are_the_batches(count: int) -> None:
    order = torch.arange(22).flip(0)
    parts = [Ranks(rank, count).cuts(order, 8) for rank in range(count)]
    for whole, *shares in zip(cuts(order, 8), *parts, strict=True):
        assert torch.equal(torch.cat([share.rows for share in shares]), whole.rows)
        assert torch.equal(torch.cat([share.places for share in shares]), whole.places)
        assert all(share.total == whole.total for share in shares)
