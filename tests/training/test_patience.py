"""`--patience`: a run ends when validation has not improved for so many epochs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mosa_deploy.adapters.attach import attach, task_state
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy, perturb
from training.config import TuneConfig
from training.loop import Trainer
from training.recipe import Recipe, adapter_config
from training.scores import early_ending, stopped_early
from training.tune import tune
from training.tune_options import OptimOptions

RECIPE = Recipe(backbone="toy", bottleneck=2, epochs=8, batch_size=8, patience=2)


def history(losses: Sequence[float], accuracy: float = 0.5) -> list[dict[str, float]]:
    return [{"epoch": i + 1, "validation_loss": loss, "validation_accuracy": accuracy} for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "stopped"),
    [
        ([], False),
        ([3.0], False),
        ([3.0, 2.0, 2.5], False),
        ([3.0, 2.0, 2.5, 2.0], True),
        ([3.0, 2.0, 2.5, 1.9], False),
        ([3.0, 2.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5], False),
    ],
    ids=["nothing", "one", "one worse", "two no better", "better again", "all epochs"],
)
def test_a_run_ends_after_so_many_epochs_that_are_no_better_than_the_best(losses: list[float], stopped: bool) -> None:
    assert stopped_early(history(losses), RECIPE) == stopped
    assert not stopped_early(history(losses), dataclasses.replace(RECIPE, patience=0))


def test_what_select_names_is_what_has_to_improve() -> None:
    rows = history([3.0, 2.0, 1.0, 0.5])
    for row, accuracy in zip(rows, (0.5, 0.6, 0.4, 0.4), strict=True):
        row["validation_accuracy"] = accuracy
    assert stopped_early(rows, RECIPE)
    assert not stopped_early(rows, dataclasses.replace(RECIPE, select="loss"))


def test_the_ending_names_the_epochs_and_the_measure() -> None:
    text = early_ending(history([3.0, 2.0, 2.5, 2.0]), dataclasses.replace(RECIPE, select="loss"))
    assert text == ("stopped after epoch 4 of 8: no better loss on validation than in epoch 2, 2 before (--patience 2)")
    assert early_ending(history([3.0]), RECIPE) == ""


def make_trainer(toy: Toy, monkeypatch: pytest.MonkeyPatch, patience: int) -> Trainer:
    """A trainer whose validation gets worse after the second epoch, whatever it learns."""
    recipe = dataclasses.replace(RECIPE, patience=patience)
    model = attach(toy(num_classes=3, depth=1), adapter_config(recipe))
    perturb(model)
    trainer = Trainer(model, random_images(8, 3), random_images(6, 3, seed=1), PREPROCESS, recipe, 0)
    sharpness = [1.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    answers = torch.eye(3)[trainer.validation.labels]
    monkeypatch.setattr("training.loop.logits_of", lambda *_: sharpness[trainer.state.epoch] * answers)
    return trainer


def test_the_epochs_before_the_end_and_their_rates_are_those_of_a_run_without_patience(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_trainer(toy, monkeypatch, 0)
    whole.fit(lambda trainer: None)
    ended = make_trainer(toy, monkeypatch, 2)
    ended.fit(lambda trainer: None)
    assert len(ended.state.history) == 4
    assert [row["lr"] for row in ended.state.history] == [row["lr"] for row in whole.state.history[:4]]
    assert all(torch.equal(value, task_state(whole.model)[name]) for name, value in task_state(ended.model).items())


def test_a_resumed_run_ends_where_an_unbroken_one_does(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = make_trainer(toy, monkeypatch, 2)
    ended.fit(lambda trainer: trainer.save(tmp_path / f"{trainer.state.epoch}.pt"))
    for broken, missing in ((3, 1), (4, 0)):
        resumed = make_trainer(toy, monkeypatch, 2)
        resumed.load(tmp_path / f"{broken}.pt")
        resumed.fit(lambda trainer: None)
        assert len(resumed.state.history) == broken + missing
        for name, value in task_state(ended.model).items():
            assert torch.equal(value, task_state(resumed.model)[name])


def test_console_and_report_say_that_a_run_ended_early(
    few: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # So small a rate changes no weight, so no epoch is better than the first.
    patient = OptimOptions(patience=1)
    run = tune(TuneConfig(task=few, lr=1e-30, epochs=5, optimisation=patient, out=tmp_path / "run", device="cpu"))
    said = "stopped after epoch 2 of 5: no better accuracy on validation than in epoch 1, 1 before (--patience 1)"
    assert said in capsys.readouterr().out.splitlines()
    assert f"epoch 1, the best of 2; {said}" in (run / "report.md").read_text()
