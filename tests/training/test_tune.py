import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss

from mosa_deploy.adapters.attach import split_layers
from mosa_deploy.adapters.restore import restore
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import probabilities
from mosa_deploy.bundles.record import read_record
from mosa_deploy.errors import BackboneError, ConfigError
from tests.support.images import PREPROCESS, random_images
from tests.support.runs import Few
from training.arguments import tune_config
from training.config import TuneConfig
from training.reading import decode_all
from training.results import write_calibration
from training.run import open_run
from training.tune import main, tune

PROMISED = {
    "adapter.safetensors",
    "adapter.json",
    "calibration.npz",
    "metrics.json",
    "history.csv",
    "report.md",
    "curves.png",
    "confusion.png",
    "calibration.png",
    "events.out.tfevents.run",
    "config.json",
    "split.csv",
}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


Fails = Callable[..., str]


@pytest.fixture
def fails(few: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Gives the one line of `training.tune` with some flags, which must fail as a user's mistake."""

    def tuned(*flags: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tune", "--task", few, "--device", "cpu", *flags])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert text.count("\n") == 1
        return text

    return tuned


def test_run_leaves_exactly_what_is_promised(few_run: Path) -> None:
    assert {path.name for path in few_run.iterdir()} == PROMISED


def test_history_has_a_row_an_epoch_and_curves_are_a_picture(few_run: Path) -> None:
    history = rows(few_run)
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert {"cross_entropy", "consistency", "validation_loss", "validation_accuracy", "lr"} <= history[0].keys()
    with Image.open(few_run / "curves.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_calibration_images_are_training_images(few_run: Path, few: str) -> None:
    images = np.load(few_run / "calibration.npz")["images"]
    train = decode_all(Few().splits(None, None).train, read_record(few_run).preprocess, "training")
    assert images.dtype == np.uint8
    assert sorted(image.tobytes() for image in images) == sorted(image.numpy().tobytes() for image in train.pixels)


def test_calibration_takes_256_different_images_at_most(tmp_path: Path) -> None:
    write_calibration(tmp_path, random_images(300, 2), random_images(270, 3), PREPROCESS, seed=0)
    arrays = np.load(tmp_path / "calibration.npz")
    for name in ("images", "validation"):
        assert arrays[name].shape == (256, 16, 16, 3)
        assert len(np.unique(arrays[name].reshape(256, -1), axis=0)) == 256


def test_validation_images_lie_beside_them_with_their_own_labels(few_run: Path, few: str) -> None:
    arrays = np.load(few_run / "calibration.npz")
    validation = decode_all(Few().splits(None, None).validation, read_record(few_run).preprocess, "validation")
    labels = {
        image.numpy().tobytes(): int(label) for image, label in zip(validation.pixels, validation.labels, strict=True)
    }
    assert len(arrays["validation"]) == len(validation)
    assert [labels[image.tobytes()] for image in arrays["validation"]] == arrays["labels"].tolist()


def test_same_seed_same_digest_and_another_seed_another(few_run: Path, few: str, tmp_path: Path) -> None:
    again = tune(TuneConfig(task=few, out=tmp_path / "again", device="cpu"))
    other = tune(TuneConfig(task=few, out=tmp_path / "other", device="cpu", seed=1))
    assert Bundle.load(again).digest == Bundle.load(few_run).digest
    assert Bundle.load(other).digest != Bundle.load(few_run).digest


@pytest.mark.parametrize(("method", "form", "split"), [("mosl", "split", 12), ("lora", "merged", 0)])
def test_a_low_rank_run_leaves_a_bundle_whose_parameters_moved(
    few: str, tmp_path: Path, method: str, form: str, split: int
) -> None:
    run = tune(
        TuneConfig(task=few, method=method, targets=("q", "fc2"), bottleneck=3, out=tmp_path / "r", device="cpu")
    )
    bundle = Bundle.load(run)
    assert (bundle.record.method, bundle.record.form, bundle.record.backbone.hidden) == (method, form, 768)
    assert len(split_layers(restore(bundle))) == split
    width, hidden, rank, depth, classes = 192, 768, 3, 6, 3
    updates = rank * (width + width) + rank * (hidden + width)
    assert bundle.record.metrics["parameters"] == depth * updates + classes * (width + 1)
    ups = [value for name, value in bundle.tensors.items() if name.endswith("up.weight")]
    assert len(ups) == 12
    assert all(np.abs(up).max() > 0 for up in ups)
    assert "targets q fc2" in (run / "report.md").read_text()


def test_validation_figures_are_those_of_the_bundle(few_run: Path) -> None:
    bundle = Bundle.load(few_run)
    record = bundle.record
    validation = decode_all(Few().splits(None, None).validation, record.preprocess, "validation")
    with torch.no_grad():
        logits = restore(bundle)(torch.from_numpy(record.preprocess.normalise(validation.pixels.numpy())))
    probabilities = softmax(logits.double().numpy() / record.temperature, axis=1)
    labels = validation.labels.numpy()
    metrics = json.loads((few_run / "metrics.json").read_text())
    assert metrics == record.metrics
    assert metrics["validation_accuracy"] == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))
    assert metrics["validation_nll"] == pytest.approx(log_loss(labels, probabilities), abs=1e-5)
    assert metrics["validation_accuracy"] == max(float(row["validation_accuracy"]) for row in rows(few_run))


def test_parameters_are_those_that_were_trained(few_run: Path) -> None:
    width, bottleneck, experts, depth, classes = 192, 2, 4, 6, 3
    adapter = 2 * width + (width + 1) * bottleneck + bottleneck * width + experts * width
    metrics = json.loads((few_run / "metrics.json").read_text())
    assert metrics["parameters"] == depth * adapter + classes * (width + 1)


def test_linear_probe_leaves_a_bundle_without_an_adapter(few: str, tmp_path: Path) -> None:
    run = tune(TuneConfig(task=few, method="linear", out=tmp_path / "run", device="cpu"))
    bundle = Bundle.load(run)
    assert {path.name for path in run.iterdir()} == PROMISED
    assert bundle.record.adapter is None
    assert bundle.tensors.keys() == {"head.weight", "head.bias"}
    assert bundle.record.metrics["parameters"] == 3 * 193
    assert [float(row["c"]) for row in rows(run)] == [1e-3, 1e-2, 0.1, 1, 10, 100, 1000]


def test_dense_adapter_is_stored_as_one_and_one_pass_has_no_consistency(few: str, tmp_path: Path) -> None:
    run = tune(TuneConfig(task=few, method="adapter", passes=1, epochs=1, out=tmp_path / "run", device="cpu"))
    record = read_record(run)
    assert record.form == "merged"
    assert record.adapter is not None
    assert record.adapter.experts == 1
    assert [float(row["consistency"]) for row in rows(run)] == [0]


def test_learned_merge_scale_travels_with_the_bundle(few: str, tmp_path: Path) -> None:
    run = tune(TuneConfig(task=few, merge_scale="learned", epochs=1, out=tmp_path / "run", device="cpu"))
    bundle = Bundle.load(run)
    assert bundle.record.adapter is not None
    scale = bundle.record.adapter.merge_scale
    assert scale is not None
    assert scale != 1 / 4
    restored = restore(bundle)
    assert {layer.merge_scale for layer in split_layers(restored)} == {scale}
    logits = restored(torch.from_numpy(bundle.canary.inputs(bundle.record.preprocess))).detach().numpy()
    assert bundle.canary.error(probabilities(logits, bundle.record.temperature)) < 1e-5


def test_batch_larger_than_the_training_set_is_one_step_an_epoch_and_said(
    few: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(TuneConfig(task=few, batch_size=100, epochs=1, out=tmp_path / "run", device="cpu"))
    assert "36 training images are fewer than --batch-size 100: one step per epoch" in capsys.readouterr().out
    assert len(rows(run)) == 1


def test_unknown_precision_is_one_line(fails: Fails, tmp_path: Path) -> None:
    text = fails("--precision", "fp8", "--out", str(tmp_path / "run"))
    assert text == "error: --precision fp8: choose auto, fp32 or bf16\n"


def test_weights_may_be_a_folder_as_transformers_saves_them(tmp_path: Path) -> None:
    given = ["--task", "digits", "--backbone-weights"]
    assert tune_config([*given, str(tmp_path)]).backbone_weights == tmp_path
    with pytest.raises(BackboneError, match=r"gone: no such file or folder$"):
        tune_config([*given, str(tmp_path / "gone")])


def test_a_name_that_no_task_may_have_is_one_line(fails: Fails) -> None:
    assert "--name Ein/Zwei: lower-case letters" in fails("--name", "Ein/Zwei")


def test_task_may_have_a_name_of_its_own(few: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tune(TuneConfig(task=few, name="ein-zwei", method="linear", device="cpu"))
    assert run == Path("runs/ein-zwei")
    assert (read_record(run).task, read_record(run).dataset) == ("ein-zwei", "few")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--bottleneck", "0"), "--bottleneck 0: at least 1"),
        (("--bottleneck", "1", "--experts", "250"), "--experts 250 does not fit a 192x1 projection: choose 1 to 192"),
        (("--method", "mosaic"), "unknown method 'mosaic'; did you mean mosa or "),
        (("--device", "tpu"), "--device tpu: choose auto, cpu or cuda"),
        (("--lr", "1e30"), "the loss is nan at epoch 1, step 2: lower --lr (now 1e+30)"),
    ],
)
def test_fault_is_one_line_and_exit_code_2(fails: Fails, tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    assert words in fails("--out", str(tmp_path / "run"), *flags)
    assert not (tmp_path / "run" / "adapter.json").exists()


def test_cuda_without_cuda_is_refused_before_anything_is_written(
    few: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda: torch finds no CUDA device here; leave it out"):
        tune(TuneConfig(task=few, device="cuda", out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_epoch_on_cuda_agrees_with_the_cpu(few: str, tmp_path: Path) -> None:
    runs = [tune(TuneConfig(task=few, epochs=1, out=tmp_path / device, device=device)) for device in ("cpu", "cuda")]
    on_cpu, on_cuda = (rows(run)[0] for run in runs)
    # bf16 keeps 8 bits: a logit of size 5 is known to about 0.02 after six blocks, and dropout draws differ by device.
    assert float(on_cuda["cross_entropy"]) == pytest.approx(float(on_cpu["cross_entropy"]), rel=0.1, abs=0.05)
    assert float(on_cuda["validation_loss"]) == pytest.approx(float(on_cpu["validation_loss"]), rel=0.1, abs=0.05)


def test_folder_of_a_run_that_never_finished_an_epoch_may_be_claimed_anew(tmp_path: Path) -> None:
    open_run(tmp_path / "run", '{"lr": 1e30}', resume=False)
    assert not open_run(tmp_path / "run", '{"lr": 0.01}', resume=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"lr": 0.01}
    (tmp_path / "run" / "history.csv").touch()
    with pytest.raises(ConfigError, match="not empty"):
        open_run(tmp_path / "run", '{"lr": 0.01}', resume=False)
