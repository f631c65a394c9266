import sys
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score

from mosa_deploy import embedded
from mosa_deploy.bundle import Bundle
from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.restore import restore
from tests.training.conftest import Few, write_jpegs
from training.config import TuneConfig
from training.data import decode_all
from training.evaluate import EvaluateConfig, evaluate, main
from training.tune import tune


@pytest.fixture(scope="module")
def listed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear run on images split by a list, which the run alone knows; only its test images are left whole."""
    root = tmp_path_factory.mktemp("listed")
    write_jpegs(root / "2750", {"Forest": 8, "River": 8})
    sets = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    lines = [f"{name} {c}/{c}_{i + 1}.jpg" for c in ("Forest", "River") for i, name in enumerate(sets)]
    (root / "list.txt").write_text("\n".join(lines))
    config = TuneConfig(
        task="eurosat",
        backbone=embedded.NAME,
        method="linear",
        data_dir=root,
        split=str(root / "list.txt"),
        out=root / "run",
        device="cpu",
    )
    run = tune(config)
    for line in lines:
        name, _, image = line.partition(" ")
        if name != "test":
            (root / "2750" / image).write_bytes(b"spoilt")
    return run


def test_bundle_and_exported_graph_agree_on_the_test_set(store: Path, digits_run: Path) -> None:
    of_bundle = evaluate(EvaluateConfig(bundle=digits_run, device="cpu"))
    of_graph = evaluate(EvaluateConfig(onnx=store / "tasks" / "digits" / "folded.onnx"))
    assert of_bundle["accuracy"] == of_graph["accuracy"] > 0.3
    assert of_graph == pytest.approx(of_bundle, abs=1e-4)


def test_accuracy_is_that_of_the_predictions_on_the_test_set(few: str, few_run: Path) -> None:
    bundle = Bundle.load(few_run)
    test = decode_all(Few().splits(None, None).test, bundle.record.preprocess, "test")
    with torch.no_grad():
        logits = restore(bundle)(torch.from_numpy(bundle.record.preprocess.normalise(test.pixels.numpy())))
    measured = evaluate(EvaluateConfig(bundle=few_run, device="cpu"))
    assert measured["accuracy"] == pytest.approx(accuracy_score(test.labels.numpy(), logits.argmax(1).numpy()))
    assert measured.keys() == {"accuracy", "nll", "ece"}


@pytest.mark.parametrize("config", [EvaluateConfig(), EvaluateConfig(bundle=Path("run"), onnx=Path("a.onnx"))])
def test_neither_and_both_are_refused(config: EvaluateConfig) -> None:
    with pytest.raises(ConfigError, match=r"^give either --bundle FOLDER or --onnx FILE$"):
        evaluate(config)


def test_run_remembers_its_images_and_their_split(
    listed_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--bundle", str(listed_run), "--device", "cpu"])
    with torch.enable_grad():  # the command line turns gradients off for its process
        main()
    said = capsys.readouterr().out
    assert said.startswith(f"test of {listed_run}: accuracy 1.0000, nll 0.")


def test_images_given_replace_those_of_the_run(listed_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"--data-dir {tmp_path}: no 2750"):
        evaluate(EvaluateConfig(bundle=listed_run, data_dir=tmp_path, device="cpu"))
