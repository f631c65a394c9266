"""A disk that fills while the store is written: one line, and everything that was there before stays."""

import shutil
import subprocess
import sys
from pathlib import Path

from mosa_deploy.backbones.names import EMBEDDED
from tests.support.files import files_of
from tests.support.images import write_jpegs
from tests.support.walker import ROOT

LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
"""Runs a module that can write no file above a size: to the writer the same as a disk that is full."""


def limited(size: int, module: str, *arguments: str) -> str:
    """The one line that the module ends with."""
    command = [sys.executable, "-c", LIMITED, str(size), module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_an_export_that_runs_out_of_room_leaves_a_new_store_without_halves(parts_run: Path, tmp_path: Path) -> None:
    text = limited(100_000, "export", "--bundle", str(parts_run), "--out", str(tmp_path / "store"))
    assert text.endswith(
        "/plain.onnx cannot be written: File too large; what was there is kept: free some space, or write elsewhere\n"
    )
    assert files_of(tmp_path / "store") == {}


def test_an_export_that_runs_out_of_room_leaves_the_earlier_task_as_it_was(
    parts_run: Path, parts_store: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(parts_store, tmp_path / "store"))
    before = files_of(store)
    assert "/tasks/parts cannot be written: " in limited(
        100_000, "export", "--bundle", str(parts_run), "--out", str(store)
    )
    assert files_of(store) == before


def test_a_run_that_finds_no_room_for_a_checkpoint_ends_in_one_line(tmp_path: Path) -> None:
    images = write_jpegs(tmp_path / "images", {"dark": 20, "light": 20}, size=32)
    task = ("--task", "folder", "--name", "greys", "--backbone", EMBEDDED, "--data-dir", str(images))
    arguments = (*task, "--epochs", "1", "--device", "cpu")
    text = limited(50_000, "training.tune", *arguments, "--out", str(tmp_path / "run"))
    assert "/run/checkpoint.pt cannot be written: " in text
    before_training = {"config.json", "split.csv", "images.sha256"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == before_training
