import csv
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mosa_deploy.backbones import embedded
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import ConfigError, TrainingError
from tests.support.files import snapshot
from tests.support.images import write_jpegs
from tests.support.waiting import wait_for
from training.config import TuneConfig
from training.tune import tune


def kill_within_its_second_epoch(config: TuneConfig) -> str:
    """Tune in a process of its own that is killed; returns what it had said by then."""
    modules = ("pathlib", "training.config", "training.tune_options", "training.tune")
    code = "; ".join([*(f"from {module} import *" for module in modules), f"tune({config})"])
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        try:
            wait_for((Path(str(config.out)) / "events.out.tfevents.run").exists)
        finally:
            run.send_signal(signal.SIGKILL)
        return run.stdout.read()


def test_run_killed_within_an_epoch_and_resumed_equals_an_unbroken_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jpegs(tmp_path / "2750", {"Forest": 40, "River": 40}, size=32)
    config = TuneConfig(
        task="eurosat",
        data_dir=tmp_path,
        backbone=embedded.NAME,
        bottleneck=2,
        epochs=3,
        batch_size=4,
        lr=1e-3,
        activate="balanced",
        ema_decay=0.5,
        shots=20,
        device="cpu",
    )
    unbroken, broken = replace(config, out=tmp_path / "unbroken"), replace(config, out=tmp_path / "broken")
    assert kill_within_its_second_epoch(broken).count("epoch ") <= 1
    tune(replace(broken, resume=True))
    assert re.findall("^epoch ./.", capsys.readouterr().out, flags=re.MULTILINE) == ["epoch 2/3", "epoch 3/3"]
    assert digest_and_files(tune(unbroken)) == digest_and_files(tmp_path / "broken")


def digest_and_files(run: Path) -> tuple[str, set[str]]:
    return Bundle.load(run).digest, {path.name for path in run.iterdir()}


def test_history_of_a_resumed_run_equals_the_unbroken_one(
    few: str, few_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("training.tune.run.write_history", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tune(TuneConfig(task=few, out=out, device="cpu"))
    tune(TuneConfig(task=few, out=out, device="cpu", resume=True))
    curve = EventAccumulator(str(out)).Reload().Scalars("validation_loss")
    assert [(point.step, point.value) for point in curve] == [
        (int(row["epoch"]), pytest.approx(float(row["validation_loss"]))) for row in history(out)
    ]
    for again, once in zip(history(out), history(few_run), strict=True):
        assert {**again, "images_per_second": ""} == {**once, "images_per_second": ""}


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_folder_that_holds_anything_is_refused_and_stays(few: str, few_run: Path) -> None:
    before = snapshot(few_run)
    with pytest.raises(ConfigError, match="is not empty: continue with --resume, or choose another --out"):
        tune(TuneConfig(task=few, out=few_run, device="cpu", seed=5))
    assert snapshot(few_run) == before


def test_resuming_another_run_is_refused_by_what_differs_and_it_stays(few: str, few_run: Path) -> None:
    before = snapshot(few_run)
    with pytest.raises(ConfigError, match=r"holds another run \(epochs was 2, is 3; seed was 0, is 5\): repeat"):
        tune(TuneConfig(task=few, out=few_run, device="cpu", seed=5, epochs=3, resume=True))
    assert snapshot(few_run) == before


def test_resuming_a_finished_run_changes_nothing(few: str, few_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(few_run)
    assert tune(TuneConfig(task=few, out=few_run, device="cpu", resume=True)) == few_run
    assert snapshot(few_run) == before
    assert "is finished" in capsys.readouterr().out


def test_nothing_to_resume_is_said_and_nothing_written(few: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run to resume: drop --resume"):
        tune(TuneConfig(task=few, out=tmp_path / "run", device="cpu", resume=True))
    assert not (tmp_path / "run").exists()


def test_loss_of_nan_keeps_the_epochs_before(few: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    one_step_an_epoch = TuneConfig(task=few, out=out, device="cpu", batch_size=64, lr=1e30)
    with pytest.raises(TrainingError, match=r"^the loss is nan at epoch 2, step 1: lower --lr \(now 1e\+30\)"):
        tune(one_step_an_epoch)
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "split.csv",
        "checkpoint.pt",
        "history.csv",
        "events.out.tfevents.run",
    }
    assert len(history(out)) == 1
