"""`--method auto`: what is tried, what is chosen, and what an interruption leaves."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.record import RECORD, read_record
from mosa_deploy.errors import BackboneError, ConfigError, DataError
from tests.support.runs import Few
from training import auto, tasks
from training.auto import PROBES, fitting, tune_auto
from training.choice import Outcome, Tried, choose, why
from training.config import TuneConfig
from training.dataset import Read, read_dataset
from training.loop import Row, Watch
from training.recipe import Recipe
from training.run import read_settings
from training.search import ADAPTERS, Search
from training.tune import tune
from training.tune_options import OptimOptions

CLIPPED = OptimOptions(clip_grad=5.0)
"""An option of the training loop, which probes do not have."""

SEARCH = TuneConfig(task=Few.name, method="auto", trials=6, worth=0.0, epochs=2, optimisation=CLIPPED, device="cpu")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a search in which an adapter wins, since it need not be better."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, Few.name, Few())
        patch.setattr(auto, "PROBES", PROBES[2:3])
        return tune(replace(SEARCH, out=tmp_path_factory.mktemp("auto") / "run"))


def test_the_winner_is_an_ordinary_run_that_knows_nothing_of_the_search(searched: Path) -> None:
    record = read_record(searched)
    assert record.method in dict(ADAPTERS)
    settings = read_settings(searched)
    assert settings["method"] == record.method
    assert settings["clip_grad"] == 5.0
    assert Bundle.load(searched).record == record
    assert not (searched / "trials").exists()


def test_the_report_lists_what_was_tried_and_says_why_the_winner_won(searched: Path) -> None:
    text = (searched / "report.md").read_text()
    section = text[text.index("## How the method was chosen") : text.index("## Validation")]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert rows[0].startswith("| linear | features blocks |")
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| adapter", "| lora", "| mosa", "| mosa", "| ssf"]
    assert section.count("**chosen**") == 1
    assert "**the adapter was chosen.**" in section
    assert "trials/" not in text


def test_a_search_that_was_interrupted_ends_in_the_same_bytes(
    searched: Path, few: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "PROBES", PROBES[2:3])
    calls: list[str] = []

    def interrupted(config: TuneConfig, read: Read = read_dataset, watch: Watch | None = None) -> Path:
        calls.append(config.method)

        def stop(history: Sequence[Row]) -> None:
            raise KeyboardInterrupt

        return tune(config, read, stop if len(calls) == 3 else watch)

    config = replace(SEARCH, out=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        tune_auto(config, interrupted)
    tune_auto(replace(config, resume=True), interrupted)
    assert calls[:4] == ["linear", "adapter", "lora", "lora"]
    for name in (RECORD, "adapter.safetensors", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (searched / name).read_bytes()


def test_a_finished_search_is_not_made_again(searched: Path, few: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(replace(SEARCH, out=searched, resume=True)) == searched
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"holds another run \(trials was 6, is 8\)"):
        tune(replace(SEARCH, out=searched, resume=True, trials=8))


def test_fewer_trials_than_methods_are_refused(few: str) -> None:
    tried = r"--method auto tries 6 methods \(probes, adapter, lora, mosa, mosa repadapter, ssf\)"
    with pytest.raises(ConfigError, match=rf"^--trials 5: {tried}, each at least once: give 6 or more$"):
        tune(replace(SEARCH, trials=5))


def test_a_backbone_that_fits_no_method_is_refused(few: str) -> None:
    with pytest.raises(BackboneError, match=r"^resnet18 is a ResNet, not a plain ViT or Swin"):
        tune(replace(SEARCH, backbone="resnet18"))


def test_what_does_not_fit_a_swin_is_left_out(few: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(SEARCH, backbone="swin_tiny_patch4_window7_224")
    assert fitting(config, Few.recipe, ADAPTERS) == [("adapter", {}), ("mosa", {})]
    left_out = capsys.readouterr().out.splitlines()
    assert left_out[0].startswith("lora is left out: low-rank adapters: a Swin takes")
    assert left_out[1].startswith("mosa repadapter is left out: ")
    assert fitting(config, Few.recipe, PROBES) == [("linear", {"features": "cls"})]


def test_a_search_that_could_not_begin_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    config = TuneConfig(task="folder", name="x", method="auto", data_dir=tmp_path / "none", out=tmp_path / "run")
    for _ in range(2):
        with pytest.raises(DataError, match=r"none"):
            tune(config)


@pytest.mark.parametrize("option", [{"trials": 4}, {"worth": 2.0}])
def test_the_options_of_a_search_go_with_it_alone(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^--(trials|worth) is an option of --method auto: drop it$"):
        TuneConfig("digits", **option).resolve(Few.recipe)


def tried(method: str, accuracy: float, nll: float = 0.5, outcome: Outcome = "finished") -> Tried:
    probe = method == "linear"
    return Tried(method, {}, Path(), probe, outcome, 0, accuracy, nll, 1.0)


@pytest.mark.parametrize(
    ("adapters", "winner"),
    [
        ([tried("mosa", 0.859)], "linear"),
        ([tried("mosa", 0.86)], "mosa"),
        ([tried("mosa", 0.87), tried("adapter", 0.88)], "adapter"),
        ([tried("mosa", 0.88, nll=0.4), tried("adapter", 0.88, nll=0.5)], "mosa"),
        ([tried("mosa", 0.99, outcome="stopped")], "linear"),
        ([], "linear"),
    ],
)
def test_an_adapter_is_chosen_if_it_is_worth_its_pass(adapters: list[Tried], winner: str) -> None:
    choice = choose([tried("linear", 0.84), tried("linear", 0.85), *adapters], 1.0)
    assert choice.winner.method == winner
    assert choice.probe.accuracy == 0.85
    assert f"the {'probe' if winner == 'linear' else 'adapter'} was chosen" in why(choice)


CENTRES = [(candidate, Recipe(backbone="vit_toy", lr=1e-2, scale=0.1)) for candidate in ADAPTERS]


def test_every_method_begins_at_its_centre_and_goes_on_around_it() -> None:
    search = Search(CENTRES, 10, "validation_accuracy", seed=0)
    proposals = [search.propose() for _ in range(8)]
    assert [each.method for each in proposals[:5]] == [method for method, _ in ADAPTERS]
    assert all(each.options["lr"] == 1e-2 for each in proposals[:5])
    assert proposals[0].options["scale"] == 0.1
    assert "scale" not in proposals[1].options
    assert proposals[2].options["activate"] == "balanced"
    assert [each.options.get("style") for each in proposals[:5]] == [None, None, None, "repadapter", None]
    assert proposals[4].options == {"lr": 1e-2}
    assert all(1e-2 / 3 <= each.options["lr"] <= 3e-2 for each in proposals)
    again = Search(CENTRES, 10, "validation_accuracy", seed=0)
    assert [again.propose().options for _ in range(8)] == [each.options for each in proposals]


def test_a_trial_that_is_behind_is_stopped_after_a_third_of_the_epochs() -> None:
    search = Search(CENTRES, 9, "validation_accuracy", seed=0)
    good, bad = search.propose(), search.propose()
    good.watch([{"validation_accuracy": 0.8}] * 9)
    search.learn(good, "finished")
    bad.watch([{"validation_accuracy": 0.6}] * 2)
    with pytest.raises(optuna.TrialPruned):
        bad.watch([{"validation_accuracy": 0.6}] * 3)
