import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from torch.nn import functional as F

from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones import embedded
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.decode import encode
from mosa_deploy.errors import ConfigError, DataError, MosaError
from tests.support.images import DATA, write_jpegs
from tests.support.runs import Few
from training import tasks
from training.config import TuneConfig
from training.evaluate import evaluate, main
from training.options import EvaluateConfig
from training.reading import decode_all
from training.recipe import Recipe
from training.tasks.base import Example, Splits
from training.tasks.cifar10 import CLASSES
from training.tune import tune


class Noise:
    """60 random images of the first CIFAR-10 classes as the test set."""

    name = "cifar10"
    recipe = Recipe(backbone=embedded.NAME)
    squash = False

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
        self.labels = [i % classes for i in range(60)]

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`."""
        names = CLASSES[: self.classes]
        pairs = zip(self.pixels, self.labels, strict=True)
        test = [Example(f"{i}", partial(encode, pixels), label) for i, (pixels, label) in enumerate(pairs)]
        return Splits(names, [], [], test, note="")


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
    assert measured.keys() == {"accuracy", "balanced_accuracy", "macro_f1", "nll", "ece"}


def test_backbone_is_evaluated_by_the_head_in_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Noise(10)
    monkeypatch.setitem(tasks.TASKS, "cifar10", task)
    model = timm.create_model(embedded.ARCHITECTURE, num_classes=10).eval()
    model.load_state_dict(load_file(embedded.WEIGHTS))
    with torch.no_grad():
        logits = model(torch.from_numpy(task.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).double()
    labels = torch.tensor(task.labels)
    measured = evaluate(EvaluateConfig(backbone=embedded.NAME, device="cpu"))
    assert measured["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert measured["nll"] == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)
    assert measured["nll"] > 1


def test_images_that_lack_classes_are_refused_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "cifar10", Noise(9))
    with pytest.raises(DataError, match=r"^cifar10 lacks the task's class 'truck'; give images of the same classes, "):
        evaluate(EvaluateConfig(backbone=embedded.NAME, device="cpu"))


@pytest.mark.data
@pytest.mark.slow
def test_model_card_gives_the_accuracy_that_is_read_again() -> None:
    card = (embedded.WEIGHTS.parent / "README.md").read_text()
    given = re.search(r"\| accuracy \| (0\.\d{4}) on the 10,000 test images", card)
    assert given is not None
    measured = evaluate(EvaluateConfig(backbone=embedded.NAME, data_dir=DATA / "cifar10.tar.gz"))
    # One image in 10,000 may lie so near a boundary that another order of sums moves it.
    assert measured["accuracy"] == pytest.approx(float(given[1]), abs=1.01e-4)


@pytest.mark.parametrize(
    "config",
    [
        EvaluateConfig(),
        EvaluateConfig(bundle=Path("run"), onnx=Path("a.onnx")),
        EvaluateConfig(bundle=Path("run"), backbone=embedded.NAME),
        EvaluateConfig(bundle=Path("run"), onnx=Path("a.onnx"), backbone=embedded.NAME),
    ],
)
def test_one_of_the_three_is_asked_for(config: EvaluateConfig) -> None:
    with pytest.raises(ConfigError, match=r"^give one of --bundle FOLDER, --onnx FILE and --backbone NAME$"):
        evaluate(config)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (EvaluateConfig(backbone="vit_tinyd6_patch4_23"), r"did you mean vit_tinyd6_patch4_32"),
        (
            EvaluateConfig(backbone="vit_base_patch16_224.augreg_in21k"),
            r"^--backbone vit_base_patch16_224\.augreg_in21k: its tag is no task; vit_tinyd6_patch4_32\.cifar10 has a",
        ),
        (EvaluateConfig(backbone=embedded.NAME), r"needs --data-dir: give cifar10\.tar\.gz"),
        (EvaluateConfig(onnx=Path("a.onnx"), backbone_weights=Path("b")), r"^--backbone-weights goes with --bundle"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(config: EvaluateConfig, line: str) -> None:
    with pytest.raises(MosaError, match=line):
        evaluate(config)


def test_run_remembers_its_images_and_their_split(
    listed_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--bundle", str(listed_run), "--device", "cpu"])
    with torch.enable_grad():  # the command line turns gradients off for its process
        main()
    lines = capsys.readouterr().out.splitlines()
    measured = "accuracy 1.0000, balanced accuracy 1.0000, macro f1 1.0000, nll 0."
    assert lines[1].startswith(f"test of {listed_run}: {measured}")
    assert lines[2] == f"every answer is in {listed_run / 'evaluation' / 'predictions.csv'}"


def test_images_given_replace_those_of_the_run(listed_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"--data-dir {tmp_path} holds no images"):
        evaluate(EvaluateConfig(bundle=listed_run, data_dir=tmp_path, device="cpu"))


def test_a_shared_graph_is_evaluated_with_a_task_s_bundle_and_agrees_with_the_folded_one(store: Path) -> None:
    (shared,) = store.glob("backbones/*/shared.onnx")
    task = store / "tasks" / "digits"
    own = evaluate(EvaluateConfig(onnx=task / "folded.onnx"))
    assert evaluate(EvaluateConfig(onnx=shared, bundle=task)) == pytest.approx(own, abs=1e-4)
    with pytest.raises(ConfigError, match=r"shared\.onnx has no task beside it: name one with --bundle"):
        evaluate(EvaluateConfig(onnx=shared))
