"""Several tasks tuned at once: one adapter, and a head, a run and a report for each."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from mosa_deploy.adapters.restore import restore
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.record import read_record
from mosa_deploy.errors import ConfigError, MosaError
from mosa_deploy.graphs.adapter_weights import adapter_weights, digest_of
from tests.support.images import PRETRAINED_CLASSES, write_jpegs
from tests.support.runs import Few
from training import tasks
from training.arguments import tune_config
from training.config import TuneConfig
from training.joint.tasks import joint_tasks
from training.joint.trainer import JointStep, joint_order, shares
from training.loop import Row
from training.recipe import Recipe
from training.tune import tune
from training.tune_options import JointOptions

DEFAULTS = """
[defaults]
backbone = "vit_tinyd6_patch4_32.cifar10"
epochs = 2
"""

TASKS = f"""{DEFAULTS}
[tasks.few]

[tasks.animals]
data_dir = "images"
"""


def write_file(folder: Path, text: str = TASKS) -> Path:
    """A file of tasks with its images."""
    if not (folder / "images").exists():
        write_jpegs(folder / "images" / "train", dict.fromkeys(PRETRAINED_CLASSES[:2], 8), size=32)
        write_jpegs(folder / "images" / "test", dict.fromkeys(PRETRAINED_CLASSES[:2], 3), size=32)
    (folder / "tasks.toml").write_text(text)
    return folder / "tasks.toml"


def options(file: Path, out: Path, resume: bool = False) -> TuneConfig:
    return TuneConfig(joining=JointOptions(joint=file), out=out, device="cpu", resume=resume)


@pytest.fixture(scope="session")
def joint_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a joint run of two small tasks."""
    folder = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, Few.name, Few())
        return tune(options(write_file(folder), folder / "run"))


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_tasks_have_one_adapter_and_a_head_of_their_own(joint_run: Path) -> None:
    few, animals = Bundle.load(joint_run / "few"), Bundle.load(joint_run / "animals")
    assert few.record.classes == ("0", "1", "2")
    assert animals.record.classes == PRETRAINED_CLASSES[:2]
    assert (few.record.task, few.record.dataset, animals.record.dataset) == ("few", "few", "folder")
    for name, value in few.tensors.items():
        if ".adapter." in name:
            np.testing.assert_array_equal(animals.tensors[name], value)
    assert digest_of(adapter_weights(few)) == digest_of(adapter_weights(animals))
    assert few.head[0].shape[0] == 3
    assert animals.head[0].shape[0] == 2
    assert np.abs(few.head[0][:2] - animals.head[0]).max() > 0.01


def test_each_bundle_answers_as_its_task_did_in_the_kept_epoch(joint_run: Path) -> None:
    rows = history(joint_run)
    best = max(rows, key=lambda row: (float(row["validation_accuracy"]), -float(row["validation_loss"])))
    found = {name: read_record(joint_run / name).metrics["validation_accuracy"] for name in ("few", "animals")}
    assert found == {name: pytest.approx(float(best[f"{name}_accuracy"])) for name in found}
    assert float(best["validation_accuracy"]) == pytest.approx(sum(found.values()) / 2)
    for name in found:
        bundle = Bundle.load(joint_run / name)
        images = [bundle.record.preprocess.read(content) for content in bundle.canary.images]
        pixels = torch.from_numpy(bundle.record.preprocess.normalise(np.stack(images)))
        with torch.inference_mode():
            scores = bundle.record.scores(restore(bundle)(pixels).numpy())
        np.testing.assert_allclose(scores, bundle.canary.probabilities, atol=1e-5)


def test_there_is_a_report_of_each_task_and_one_of_all(joint_run: Path) -> None:
    whole = (joint_run / "report.md").read_text()
    assert "| [few](few/report.md) | 3 | 36 | " in whole
    assert "tuned at once with few, animals, sampling temperature 2" in (joint_run / "few" / "report.md").read_text()
    assert not (joint_run / "checkpoint.pt").exists()
    assert json.loads((joint_run / "few" / "config.json").read_text())["sampling_temperature"] == 2


def test_the_loss_of_an_image_is_that_of_its_task_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 5, generator=generator), torch.tensor([0, 2, 3, 4])
    step = JointStep.__new__(JointStep)
    step.recipe, step.class_weights, step.tasks = Recipe(backbone="any", passes=2), None, torch.tensor([0, 0, 0, 1, 1])
    cross_entropy, consistency = step.losses(logits, labels)
    missed, apart = [], []
    for row, label in enumerate(labels.tolist()):
        own = slice(0, 3) if label < 3 else slice(3, 5)
        first, second = (log_softmax(logits[row + 4 * k, own].double().numpy()) for k in (0, 1))
        missed.append(-first[label - own.start])
        apart.append(((np.exp(first) - np.exp(second)) * (first - second)).sum() / 2)
    assert float(cross_entropy) == pytest.approx(np.mean(missed), rel=1e-5)
    assert float(consistency) == pytest.approx(np.mean(apart), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 1e6])
def test_a_task_is_drawn_in_proportion_to_the_root_of_its_size(temperature: float) -> None:
    sizes = [1078, 800, 10]
    whole = sum(size ** (1 / temperature) for size in sizes)
    exact = [sum(sizes) * size ** (1 / temperature) / whole for size in sizes]
    found = shares(sizes, temperature)
    assert sum(found) == sum(sizes)
    assert found == pytest.approx(exact, abs=1)
    assert temperature > 1 or found == sizes


def test_an_epoch_sees_all_images_of_a_task_before_any_again() -> None:
    torch.manual_seed(0)
    of = torch.tensor([0] * 40 + [1] * 10)
    order = joint_order(of, 2, temperature=2.0)
    counts = order.bincount(minlength=50)
    first, second = shares([40, 10], 2.0)
    assert (int(counts[:40].sum()), int(counts[40:].sum())) == (first, second) == (33, 17)
    assert int(counts[:40].max()) == 1
    assert {int(counts[40:].min()), int(counts[40:].max())} == {1, 2}
    assert len({*order[:10].tolist()} & {*range(40)}) not in (0, 10)  # the tasks are mixed
    assert sorted(joint_order(of, 2, temperature=1.0).tolist()) == [*range(50)]


def test_a_joint_run_that_stopped_goes_on_to_the_same_bytes(
    few: str, joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(rows: Sequence[Row]) -> None:
        raise KeyboardInterrupt

    file = write_file(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        tune(options(file, tmp_path / "run"), watch=stop)
    with pytest.raises(ConfigError, match="holds a run: continue with --resume, or choose another --out"):
        tune(options(file, tmp_path / "run"))
    assert tune(options(file, tmp_path / "run", resume=True)) == tmp_path / "run"
    assert "resumed after epoch 1" in capsys.readouterr().out
    for name in (few, "animals"):
        assert Bundle.load(tmp_path / "run" / name).digest == Bundle.load(joint_run / name).digest
    tune(options(file, tmp_path / "run", resume=True))
    assert "is finished" in capsys.readouterr().out


def faults(folder: Path, text: str) -> str:
    """What is said of a file, in one line."""
    with pytest.raises(MosaError) as caught:
        joint_tasks(options(write_file(folder, text), folder / "run"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_faults_of_a_file_are_told_at_once(few: str, tmp_path: Path) -> None:
    said = faults(
        tmp_path,
        f"""{DEFAULTS}
lear = 0.1
[tasks.few]
[tasks.few]
colour = "red"
[tasks.Odd]
data_dir = "gone"
[other]
""".replace("[other]\n", ""),
    )
    for text in ("unknown option 'lear'", "[tasks.few in line 8] has a name", "unknown option 'colour'", "there is no"):
        assert text in said


def test_tasks_that_do_not_go_together_are_told_at_once(few: str, tmp_path: Path) -> None:
    said = faults(tmp_path, f'{TASKS}image_size = 64\nmethod = "lora"\n')
    assert "image_size is not given for few, 64 for animals: a joint run has one, put it into [defaults]" in said
    assert "method is not given for few, lora for animals" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tasks.few]\n", "a joint run takes two tasks or more"),
        (
            TASKS.replace("backbone =", "#"),
            "the tasks' own backbones are vit_small_patch14_dinov2.lvd142m and",
        ),
        (f"{DEFAULTS}method = 'linear'\n[tasks.few]\n[tasks.digits]\n", "--method linear has no adapter to share"),
        (f"{DEFAULTS}mixup = 0.2\n[tasks.few]\n[tasks.digits]\n", "--mixup and --cutmix would blend images of"),
        (f"{DEFAULTS}balance = 'loss'\n[tasks.few]\n[tasks.digits]\n", "--balance loss: a joint run draws by"),
        (f"{DEFAULTS}merge_scale = 'learned'\n[tasks.few]\n[tasks.digits]\n", "--merge-scale learned is fitted to one"),
        (f"{DEFAULTS}[tasks.few]\n[tasks.sprites-labels]\n", "[tasks.sprites-labels] has several labels per image"),
        (f"{DEFAULTS}[tasks.few]\n[tasks.Ein]\ntask = 'digits'\n", "[tasks.Ein] is no name of a task"),
    ],
)
def test_what_a_joint_run_cannot_do_is_refused(few: str, tmp_path: Path, text: str, words: str) -> None:
    assert words in faults(tmp_path, text)


def test_the_command_line_goes_before_the_file(few: str, tmp_path: Path) -> None:
    file = write_file(tmp_path)
    config = tune_config(["--joint", str(file), "--epochs", "7", "--sampling-temperature", "3", "--seed", "2"])
    configs, recipe = joint_tasks(config)
    assert [each.name for each in configs] == ["few", "animals"]
    assert [each.out for each in configs] == [Path("runs/tasks/few"), Path("runs/tasks/animals")]
    assert (recipe.epochs, recipe.bottleneck, {each.seed for each in configs}) == (7, 2, {2})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--joint", "gone.toml"], "--joint gone.toml: no such file; give a TOML file of tasks"),
        (["--task", "digits", "--sampling-temperature", "3"], "--sampling-temperature 3 goes with --joint"),
        (["--joint", "gone.toml", "--sampling-temperature", "0"], "--sampling-temperature 0: above 0"),
    ],
)
def test_options_of_joint_runs_are_checked(given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tune_config(given)


def test_an_image_of_a_task_belongs_into_the_file(few: str, tmp_path: Path) -> None:
    file = write_file(tmp_path)
    with pytest.raises(ConfigError, match="--data-dir does not go with --joint: leave it out"):
        joint_tasks(TuneConfig(joining=JointOptions(joint=file), data_dir=tmp_path))


def test_a_joint_run_chooses_no_method(few: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--method auto has no adapter to share"):
        tune(TuneConfig(joining=JointOptions(joint=write_file(tmp_path)), method="auto", device="cpu"))


def test_a_temperature_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        JointOptions(joint=Path("tasks.toml"), sampling_temperature=math.inf)
