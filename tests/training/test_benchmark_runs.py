"""Runs on miniatures of benchmarks: by the trainer's own path from files to figures."""

from pathlib import Path

import pytest

from mosa_deploy.backbones.load import outline_of
from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.decode import Decode
from tests.support.documents import command_lines, shell
from tests.support.miniatures import vtab_lists
from tests.support.walker import ROOT
from training.config import TuneConfig
from training.evaluate import evaluate
from training.options import EvaluateConfig
from training.plan import preprocess_of
from training.recipes import PAPER, images_of, remarks, settings_of
from training.tasks import find
from training.tune import tune


@pytest.fixture
def miniature(tmp_path: Path) -> Path:
    return vtab_lists(tmp_path / "eurosat")


def config(miniature: Path, **options: object) -> TuneConfig:
    given = {
        "task": "vtab/eurosat",
        "data_dir": miniature,
        "backbone": EMBEDDED,
        "device": "cpu",
        "epochs": 1,
    } | options
    return TuneConfig(**given, out=miniature.parent / "run")  # type: ignore[arg-type] # the options are those of the test


def test_a_task_of_a_benchmark_is_tuned_and_evaluated(miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tune(config(miniature, passes=1))
    record = Bundle.load(run).record
    assert (record.task, record.dataset) == ("vtab-eurosat", "vtab/eurosat")
    assert record.classes == tuple("0123456789")
    assert record.preprocess.resize == "squash"
    said = capsys.readouterr()
    assert "warning: no training image of class 3, 4, 5, 6, 7, 8, 9: no answer will name it" in said.err
    assert "the figures do not stand beside published ones" in said.out
    assert "train,images/train800/000000.jpg,0\n" in (run / "split.csv").read_text()
    found = evaluate(EvaluateConfig(bundle=run, device="cpu"))
    assert 0 <= found["accuracy"] <= 1


def test_a_probe_never_names_a_class_without_training_images(miniature: Path) -> None:
    run = tune(config(miniature, method="linear", epochs=None))
    bundle = Bundle.load(run)
    head = bundle.tensors["head.weight"]
    assert head.shape[0] == 10
    assert not head[3:].any()
    assert (bundle.tensors["head.bias"][3:] == -100).all()
    assert evaluate(EvaluateConfig(bundle=run, device="cpu"))["accuracy"] == 1.0


def test_the_papers_recipe_is_that_for_the_data_set() -> None:
    recipe = TuneConfig(task="fgvc/cars", recipe="paper").resolve(find("fgvc/cars").recipe)
    assert (recipe.bottleneck, recipe.lr, recipe.experts, recipe.share) == (64, 5e-3, 2, "up")
    assert (recipe.augment, recipe.epochs, recipe.batch_size) == ("crop", 100, 128)
    assert settings_of("paper", "vtab/eurosat") == PAPER
    assert settings_of("ours", "fgvc/cars") == {}
    assert remarks("paper", {}, "fgvc/cub")[0].startswith(
        "recipe paper, the variant for fgvc/cub: crops and flips, r = 64"
    )


@pytest.mark.parametrize(
    ("task", "resize", "crop"),
    [("vtab/eurosat", "squash", 1.0), ("fgvc/cub", "center", 0.875), ("digits", "squash", 1.0)],
)
def test_images_of_the_papers_recipe(task: str, resize: str, crop: float) -> None:
    model = outline_of("vit_tiny_patch16_224")
    given = TuneConfig(task=task, recipe="paper").resolve(find(task).recipe)
    found = preprocess_of(model, given, find(task), Decode())
    assert (found.resize, found.crop_pct, found.size) == (resize, crop, (224, 224))
    assert images_of("ours", task) == {}


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    said = ""
    for line in command_lines(ROOT / "docs" / "paper.md"):
        with_weights = f" --backbone {EMBEDDED}" if "benchmarks.paper" in line else ""
        said += shell(line + with_weights, tmp_path, PYTHONPATH=str(ROOT), MOSA_HOME=str(tmp_path))
    assert "| vtab/eurosat | 10 | 800 | 200 | 5,400 | MIT | missing |" in said
    assert "epoch 1/1" in said
    assert "missing: images of 19 of 19 tasks" in said
    assert (tmp_path / "build" / "run" / "adapter.json").is_file()
