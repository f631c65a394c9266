"""Several labels per image, from a table to an answer: tuned, evaluated, exported, opened and served."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.export import export
from export.options import ExportConfig
from mosa_deploy import Predictor
from mosa_deploy.bundles.record import read_record
from mosa_deploy.cli import predict
from mosa_deploy.errors import ConfigError, DataError
from tests.support.app import running, scores
from tests.support.documents import write_scenes
from tests.support.images import write_jpegs
from tests.support.runs import Once
from tests.support.splits import write_table
from training.config import TuneConfig
from training.evaluate import print_evaluation
from training.options import EvaluateConfig
from training.tune import tune
from training.tune_options import LabelOptions, StreamOptions

SEVERAL = LabelOptions(multi_label=True)


@pytest.fixture(scope="module")
def scenes(once: Once) -> Path:
    """Scenes of bands in red, green and blue, which a table names; some have none."""
    return once("scenes", lambda folder: write_scenes(folder)) / "scenes"


@pytest.fixture(scope="module")
def run(once: Once, scenes: Path) -> Path:
    config = TuneConfig(
        task="folder",
        name="scenes",
        labels=(scenes / "labels.csv",),
        labelling=SEVERAL,
        backbone="vit_tinyd6_patch4_32.cifar10",
        epochs=4,
        batch_size=8,
        bottleneck=4,
        device="cpu",
    )
    return once("scenes-run", lambda out: tune(replace(config, out=out)))


@pytest.fixture(scope="module")
def exported(once: Once, run: Path, store: Path) -> Path:
    """A store in which the backbone has been traced, and the task."""

    def make(root: Path) -> None:
        shutil.copytree(store, root)
        export(ExportConfig(bundle=run, out=root))

    return once("scenes-store", make)


def test_the_record_says_how_each_label_is_answered(run: Path) -> None:
    record = read_record(run)
    assert record.classes == ("blue", "green", "red")
    assert record.per_label is not None
    assert record.metrics["validation_map"] > 0.9
    assert record.temperature == 1


def test_the_report_has_a_line_for_each_label(run: Path) -> None:
    text = (run / "report.md").read_text()
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")] == [
        "`blue`",
        "`green`",
        "`red`",
    ]
    assert "mAP (mean over the labels)" in text


def test_images_without_labels_are_kept_in_the_split(run: Path) -> None:
    with (run / "split.csv").open(newline="") as handle:
        given = {row["file"]: row["label"] for row in csv.DictReader(handle)}
    assert "" in given.values()
    assert "blue|green|red" in given.values()


def test_an_evaluation_tells_map_and_every_score(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation(EvaluateConfig(bundle=run, out=tmp_path, device="cpu"))
    assert "map 0.9" in (said := capsys.readouterr().out) or "map 1.0" in said
    with (tmp_path / "predictions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["file", "labels", "answers", "score of blue", "score of green", "score of red"]
    assert sum(row["labels"] == row["answers"] for row in rows) > len(rows) / 2


def test_class_folders_cannot_measure_it(run: Path, tmp_path: Path) -> None:
    write_jpegs(tmp_path / "test", {"red": 1, "blue": 1})
    with pytest.raises(DataError, match=r"^an image may have several labels, which no folder says"):
        print_evaluation(EvaluateConfig(bundle=run, data_dir=tmp_path, device="cpu"))


def test_a_table_with_a_label_that_the_task_does_not_know(run: Path, scenes: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "new.csv", "file,labels,split", [("0.png", "red|pink", "test")])
    config = EvaluateConfig(bundle=run, data_dir=scenes, labels=(table,), device="cpu")
    with pytest.raises(DataError, match="has a class that the task does not know: 'pink'"):
        print_evaluation(config)


def test_a_table_may_lack_labels_of_the_task(run: Path, scenes: Path, tmp_path: Path) -> None:
    with (scenes / "labels.csv").open(newline="") as handle:
        rows = [(row["file"], row["labels"], "test") for row in csv.DictReader(handle) if "red" not in row["labels"]]
    table = write_table(tmp_path / "new.csv", "file,labels,split", rows)
    print_evaluation(EvaluateConfig(bundle=run, data_dir=scenes, labels=(table,), out=tmp_path, device="cpu"))
    assert "score of red" in (tmp_path / "predictions.csv").read_text()


def test_the_export_proves_its_scores_and_counts_right_images(exported: Path, run: Path) -> None:
    parity = json.loads((exported / "tasks" / "scenes" / "parity.json").read_text())
    assert all(link["top1_agreement"] == 1 for link in parity["links"])
    assert parity["accuracy_images"] > 0
    found = parity["files"]["folded.onnx"]["accuracy"]
    assert found == pytest.approx(read_record(run).metrics["validation_accuracy"])


@pytest.mark.parametrize("folded", [(), ("scenes",)], ids=["shared", "folded"])
def test_the_service_and_the_predictor_answer_as_the_model_did(
    exported: Path, scenes: Path, folded: tuple[str, ...]
) -> None:
    predictor = Predictor.open(exported / "tasks" / "scenes")
    with running(exported, folded=folded) as client:
        for image in sorted(scenes.glob("*.png"))[:6]:
            answer = client.post("/classify", files={"image": image.read_bytes()}, data={"task": "scenes"})
            own = predictor.classify(image)
            assert scores(answer) == pytest.approx({each.label: each.score for each in own.predictions}, abs=1e-5)


def test_the_predictor_takes_a_threshold(exported: Path, scenes: Path, store: Path) -> None:
    predictor = Predictor.open(exported / "tasks" / "scenes")
    assert {*predictor.classify(scenes / "0.png", threshold=0).labels} == {"blue", "green", "red"}
    assert len(predictor.classify(scenes / "0.png", top_k=1, threshold=0).labels) == 1
    with pytest.raises(ConfigError, match=r"^threshold 2 is no threshold: 0 to 1$"):
        predictor.classify(scenes / "0.png", threshold=2)
    with pytest.raises(ConfigError, match=r"^'digits' answers with one class per image, so no threshold is taken"):
        Predictor.open(store / "tasks" / "digits").classify(scenes / "0.png", threshold=0.5)


def test_predict_writes_a_line_for_each_label_and_one_for_none(exported: Path, scenes: Path, tmp_path: Path) -> None:
    task, out = str(exported / "tasks" / "scenes"), tmp_path / "out.csv"
    predict([task, str(scenes), "--out", str(out)], "mosa predict")
    with out.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    answered = {row["file"]: [each["class"] for each in rows if each["file"] == row["file"]] for row in rows}
    predictor = Predictor.open(task)
    assert answered == {str(image): list(predictor.classify(image).labels) or [""] for image in scenes.glob("*.png")}


@pytest.mark.parametrize("method", ["linear", "attentive"])
def test_probes_learn_labels_too_from_a_cache(method: str, scenes: Path, tmp_path: Path) -> None:
    config = TuneConfig(
        task="folder",
        name="scenes",
        method=method,
        labels=(scenes / "labels.csv",),
        labelling=SEVERAL,
        backbone="vit_tinyd6_patch4_32.cifar10",
        streaming=StreamOptions(cache=tmp_path / "cache", workers=1),
        device="cpu",
        out=tmp_path / "run",
    )
    assert read_record(tune(config)).metrics["validation_map"] > 0.9


def test_the_asymmetric_loss_learns_labels_too(scenes: Path, tmp_path: Path) -> None:
    config = TuneConfig(
        task="folder",
        name="scenes",
        method="adapter",
        labels=(scenes / "labels.csv",),
        labelling=LabelOptions(multi_label=True, loss="asymmetric"),
        backbone="vit_tinyd6_patch4_32.cifar10",
        epochs=2,
        bottleneck=2,
        device="cpu",
        out=tmp_path / "run",
    )
    record = read_record(tune(config))
    assert record.metrics["validation_map"] > 0.9
    assert json.loads((tmp_path / "run" / "config.json").read_text())["loss"] == "asymmetric"
    assert np.isfinite(record.metrics["validation_nll"])
