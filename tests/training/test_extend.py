"""A task gets more classes, and a run starts from the adapter of another."""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mosa_deploy.adapters.restore import restore
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.record import read_record
from mosa_deploy.errors import BackboneError, ConfigError, DataError, MosaError
from tests.support.images import PREPROCESS, random_images
from tests.support.runs import Few, of_class
from training.arguments import tune_config
from training.config import TuneConfig
from training.data import Images
from training.dataset import Dataset
from training.evaluate import evaluate
from training.extend import Extension
from training.joined import JoinedSet
from training.loop import predict
from training.options import EvaluateConfig
from training.reading import decode_all
from training.results import write_calibration
from training.start import completed
from training.tasks.base import Example
from training.tasks.digits import Digits
from training.tune import tune
from training.tune_options import StartOptions


def write_digits(folder: Path, labels: Sequence[int], count: int = 15) -> Path:
    """A folder of digits, in one folder per class: `d3/0.png`."""
    train = list(Digits().splits(None, None).train)
    for label in labels:
        (folder / f"d{label}").mkdir(parents=True)
        for i, example in enumerate(of_class(train, label)[:count]):
            (folder / f"d{label}" / f"{i}.png").write_bytes(example.read())
    return folder


@pytest.fixture(scope="session")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two new classes."""
    return write_digits(tmp_path_factory.mktemp("new") / "new", (3, 4))


def options(out: Path, **starting: Any) -> TuneConfig:
    return TuneConfig(starting=StartOptions(**starting), out=out, epochs=1, device="cpu")


@pytest.fixture(scope="session")
def extended(few_run: Path, new: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run with two classes more."""
    return tune(replace(options(tmp_path_factory.mktemp("extended") / "run", extend=few_run), data_dir=new))


def accuracy(run: Path, images: Images, labels: torch.Tensor) -> float:
    """That of a restored bundle, with all its classes."""
    logits = predict(restore(Bundle.load(run)), images, read_record(run).preprocess, "cpu")
    return float((logits.argmax(1) == labels).double().mean())


def test_evaluation_asks_about_the_test_images_of_old_and_new_classes(
    few: str, extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(EvaluateConfig(bundle=extended, device="cpu"))
    record, old, fresh = read_record(extended), Few().splits(None, None).test, new_test(extended)
    images = decode_all([*old, *fresh], record.preprocess, "test")
    assert f"{len(old) + len(fresh)} test images" in capsys.readouterr().out
    assert found["accuracy"] == pytest.approx(accuracy(extended, images, images.labels))


def new_test(run: Path) -> list[Example]:
    """The test images of the new classes, by the run's own table."""
    with (run / "split.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["set"] == "test"]
    folder, classes = Path(json.loads((run / "config.json").read_text())["data_dir"]), read_record(run).classes
    return [Example(row["file"], (folder / row["file"]).read_bytes, classes.index(row["label"])) for row in rows]


def largest_difference(one: np.typing.NDArray[Any], other: np.typing.NDArray[Any]) -> float:
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())


def test_the_new_classes_come_after_the_old_ones_of_the_same_task(few_run: Path, extended: Path) -> None:
    before, after = read_record(few_run), read_record(extended)
    assert after.classes == ("0", "1", "2", "d3", "d4")
    assert (after.task, after.method, after.adapter) == (before.task, before.method, before.adapter)
    assert after.preprocess == before.preprocess


def test_forgetting_is_the_accuracy_on_old_validation_images_before_minus_after(few_run: Path, extended: Path) -> None:
    old = decode_all(Few().splits(None, None).validation, read_record(few_run).preprocess, "validation")
    found = json.loads((extended / "metrics.json").read_text())
    assert found["old_classes_before"] == pytest.approx(accuracy(few_run, old, old.labels))
    assert found["old_classes_after"] == pytest.approx(accuracy(extended, old, old.labels))
    assert found["forgetting"] == pytest.approx(found["old_classes_before"] - found["old_classes_after"])
    assert "forgetting" in (extended / "report.md").read_text()
    assert read_record(extended).metrics["forgetting"] == found["forgetting"]


def test_it_is_taught_by_the_task_as_it_was(extended: Path) -> None:
    with (extended / "history.csv").open(newline="") as handle:
        rows = [*csv.DictReader(handle)]
    assert all(0 < float(row["distillation"]) < 1 for row in rows)
    assert json.loads((extended / "config.json").read_text())["distil"] == 1.0


def test_the_rows_of_new_classes_are_fitted_before_anything_is_learned(
    few_run: Path, new: Path, tmp_path: Path
) -> None:
    still = replace(options(tmp_path / "run", extend=few_run, distil=0.0), data_dir=new, lr=1e-12)
    run = tune(still)
    examples = new_test(run)
    images = decode_all(examples, read_record(run).preprocess, "test")
    assert accuracy(run, images, images.labels) > 0.7
    assert "distillation" not in (run / "history.csv").read_text()


@pytest.mark.slow  # three runs
def test_a_run_that_is_resumed_is_taught_the_same(few_run: Path, new: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(history: Sequence[Any]) -> None:
        raise StoppedError

    config = replace(options(tmp_path / "run", extend=few_run), data_dir=new, epochs=2)
    whole = Bundle.load(tune(replace(config, out=tmp_path / "whole")))
    with pytest.raises(StoppedError):
        tune(config, watch=stop)
    resumed = Bundle.load(tune(replace(config, resume=True)))
    assert resumed.digest == whole.digest


def test_crops_are_taught_what_the_whole_image_is(few_run: Path, new: Path, tmp_path: Path) -> None:
    config = options(tmp_path / "run", extend=few_run)
    augmentation = replace(config.augmentation, augment="crop")
    run = tune(replace(config, data_dir=new, augmentation=augmentation, lr=1e-12))
    images = decode_all(new_test(run), read_record(run).preprocess, "test")
    assert accuracy(run, images, images.labels) > 0.7


def test_without_learning_the_adapter_and_the_old_rows_stay(few_run: Path, new: Path, tmp_path: Path) -> None:
    still = replace(options(tmp_path / "run", extend=few_run), data_dir=new, lr=1e-12)
    before, after = Bundle.load(few_run).tensors, Bundle.load(tune(still)).tensors
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert largest_difference(after[name][: len(value)], value) < 1e-8
    assert len(after["head.bias"]) == 5


def test_exemplars_are_old_training_images_so_many_of_each_class(few_run: Path) -> None:
    extension, whole = Extension.open(few_run, 4), Digits().splits(None, None)
    preprocess = extension.record.preprocess

    def images(examples: Sequence[Example]) -> Images:
        return decode_all(examples, preprocess, "some")

    fresh = [example._replace(label=0) for example in of_class(list(whole.train), 7)[:6]]
    joined = extension.joined(Dataset(images(fresh), images(fresh[:2]), []))
    assert Counter(joined.train.labels.tolist()) == {0: 4, 1: 4, 2: 4, 3: 6}
    old = joined.train.take(torch.arange(len(joined.train)))[joined.train.labels < 3]
    splits = Few().splits(None, None)
    assert {each.numpy().tobytes() for each in old} <= {each.numpy().tobytes() for each in images(splits.train).pixels}
    held_out = {each.numpy().tobytes() for each in images(splits.validation).pixels}
    assert not {each.numpy().tobytes() for each in old} & held_out
    assert {each.tobytes() for each in joined.validation.take(range(len(joined.validation))).numpy()} >= held_out


def test_a_run_keeps_as_many_training_images_of_each_class_as_make_256(tmp_path: Path) -> None:
    images = random_images(600, 3)
    uneven = replace(images, labels=torch.cat([torch.full((560,), 0), torch.full((30,), 1), torch.full((10,), 2)]))
    write_calibration(tmp_path, uneven, images, PREPROCESS, seed=0)
    assert Counter(np.load(tmp_path / "calibration.npz")["classes"].tolist()) == {0: 216, 1: 30, 2: 10}
    write_calibration(tmp_path, uneven, images, PREPROCESS, seed=0, exemplars=300)
    arrays = np.load(tmp_path / "calibration.npz")
    assert Counter(arrays["classes"].tolist()) == {0: 300, 1: 30, 2: 10}
    labels = {image.numpy().tobytes(): int(label) for image, label in zip(uneven.pixels, uneven.labels, strict=True)}
    assert [labels[image.tobytes()] for image in arrays["images"]] == arrays["classes"].tolist()


def test_images_of_a_joined_set_are_those_of_its_parts() -> None:
    parts = [random_images(5, 2), random_images(3, 3, seed=1), random_images(4, 2, seed=2)]
    joined = JoinedSet.of(parts, [0, 2, 5])
    pixels = torch.cat([part.pixels for part in parts])
    assert joined.labels.tolist() == [0, 1, 0, 1, 0, 2, 3, 4, 5, 6, 5, 6]
    for index in ([11, 0, 7, 4, 5, 8, 0], [6], []):
        assert torch.equal(joined.take(index), pixels[index])
    assert torch.equal(torch.cat(list(joined.split(5))), pixels)


def test_one_class_is_enough_and_the_result_can_be_extended_again(few_run: Path, tmp_path: Path) -> None:
    for number, label in enumerate((5, 6)):
        data = write_digits(tmp_path / f"new{number}", [label], count=10)
        start = few_run if not number else tmp_path / "run0"
        tune(replace(options(tmp_path / f"run{number}", extend=start, exemplars=3), data_dir=data))
    assert read_record(tmp_path / "run1").classes == ("0", "1", "2", "d5", "d6")
    assert set(np.load(tmp_path / "run1" / "calibration.npz")["classes"].tolist()) == set(range(5))


def test_what_is_left_out_comes_from_the_run(few_run: Path, new: Path) -> None:
    config = tune_config(["--extend", str(few_run), "--data-dir", str(new)])
    assert (config.task, config.name, config.out) == ("folder", "few", Path("runs/few-extended"))
    assert (config.method, config.backbone, config.bottleneck) == ("mosa", read_record(few_run).backbone.name, 2)
    assert config.epochs == 5  # half of the toy's ten
    assert config.lr == pytest.approx(2e-3)  # a fifth of the toy's
    assert completed(config) == config


def test_all_that_contradicts_the_run_is_told_at_once(few_run: Path, new: Path) -> None:
    given = ["--data-dir", str(new), "--backbone", "test_vit2", "--bottleneck", "8", "--method", "lora"]
    with pytest.raises(ConfigError) as caught:
        tune_config(["--extend", str(few_run), *given])
    said = str(caught.value)
    assert said.startswith(f"--extend {few_run}: --method lora: it has mosa, leave it out; --backbone test_vit2: it ")
    assert said.endswith("--bottleneck 8: it has 2, leave it out")


def test_the_default_method_contradicts_another_if_it_was_asked_for(
    few: str, tmp_path: Path, new: Path, few_run: Path
) -> None:
    run = tune(TuneConfig(task=few, method="adapter", epochs=1, out=tmp_path / "run", device="cpu"))
    given = ["--extend", str(run), "--data-dir", str(new)]
    assert tune_config(given).method == "adapter"
    with pytest.raises(ConfigError, match="--method mosa: it has adapter, leave it out"):
        tune_config([*given, "--method", "mosa"])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--distil", "2"], "--distil 2 goes with --extend: leave it out"),
        (["--extend", "RUN", "--distil", "-1"], "--distil -1: at least 0"),
        (["--extend", "RUN", "--mixup", "0.2"], "--mixup 0.2: --extend teaches single images, so drop it, or add --di"),
    ],
)
def test_a_weight_of_distillation_without_sense_is_refused(
    few_run: Path, new: Path, given: list[str], text: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        tune_config([each.replace("RUN", str(few_run)) for each in given] + ["--data-dir", str(new)])
    assert "\n" not in str(caught.value)


def test_blends_are_not_taught(few_run: Path, new: Path) -> None:
    given = ["--extend", str(few_run), "--data-dir", str(new), "--mixup", "0.2", "--distil", "0"]
    assert tune_config(given).starting.distil == 0


def merged(run: Path) -> None:
    edit(run, form="merged")


def edit(run: Path, **fields: Any) -> None:
    path = run / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def without_classes(run: Path) -> None:
    arrays = dict(np.load(run / "calibration.npz"))
    del arrays["classes"]
    np.savez(run / "calibration.npz", **arrays)


@pytest.mark.parametrize(
    ("change", "given", "error", "text"),
    [
        (merged, {}, ConfigError, "its experts are merged, as in a store: give the folder of the run that tuned it"),
        (lambda run: edit(run, method="linear", adapter=None, form="merged"), {}, ConfigError, "has no adapter"),
        (without_classes, {}, DataError, "keeps no images of its classes: give the folder of the run"),
        (lambda run: (run / "calibration.npz").unlink(), {}, DataError, "keeps no images of its classes"),
        (lambda run: None, {"exemplars": 13}, DataError, r"fewer training images than 13 of 0 \(12\), 1 \(12\), 2"),
        (lambda run: edit(run, classes=["d3", "x", "d4"]), {}, ConfigError, "has d3, d4 already: --data-dir should"),
        (lambda run: edit(run, classes=["D3", "x", "y"]), {}, DataError, "'D3' and 'd3'"),
    ],
    ids=["merged", "probe", "without classes", "without images", "few exemplars", "class twice", "class in capitals"],
)
def test_a_run_that_cannot_get_more_classes_is_refused(
    few_run: Path, new: Path, tmp_path: Path, change: Any, given: dict[str, int], error: type[MosaError], text: str
) -> None:
    change(Path(shutil.copytree(few_run, tmp_path / "old")))
    with pytest.raises(error, match=text) as caught:
        tune(replace(options(tmp_path / "run", extend=tmp_path / "old", **given), data_dir=new))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_backbone_are_refused(few_run: Path, new: Path, tmp_path: Path) -> None:
    config = replace(options(tmp_path / "run", extend=few_run), data_dir=new, random_weights=True)
    with pytest.raises(BackboneError, match=r"was tuned on vit_tinyd6.*: give the same weights with"):
        tune(config)


def test_another_task_starts_from_the_adapter_and_not_from_the_head(few_run: Path, new: Path, tmp_path: Path) -> None:
    still = replace(options(tmp_path / "run", init=few_run), name="other", data_dir=new, lr=1e-12)
    before, after = Bundle.load(few_run), Bundle.load(tune(still))
    assert (after.record.task, after.record.classes) == ("other", ("d3", "d4"))
    for name, value in before.tensors.items():
        if ".adapter." in name:
            assert largest_difference(after.tensors[name], value) < 1e-8
    assert largest_difference(after.head[0], before.head[0][:2]) > 0.01


def test_init_and_extend_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--init and --extend exclude each other: drop one; --exemplars 0: at"):
        StartOptions(init=Path("a"), extend=Path("b"), exemplars=0)
