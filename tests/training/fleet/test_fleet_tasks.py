"""The tasks of a fleet: what the file and the command line make of them, and what is refused before anything starts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.errors import ConfigError
from tests.support.images import write_jpegs
from tests.support.walker import ROOT
from training.fleet.options import FleetConfig
from training.fleet.stages import FleetTask, Notes
from training.fleet.tasks import fleet_tasks
from training.run import CONFIG

Read = Callable[..., list[FleetTask]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a file of this text as the tasks of a fleet."""

    def tasks(text: str, **options: Any) -> list[FleetTask]:
        (tmp_path / "tasks.toml").write_text(text)
        return fleet_tasks(replace(FleetConfig(tmp_path / "tasks.toml", out=tmp_path / "fleet"), **options))

    return tasks


def test_a_task_has_a_method_of_its_own_and_a_name_beside_its_images(read: Read, tmp_path: Path) -> None:
    first, second = read("[defaults]\nmethod = 'linear'\n[tasks.digits]\n[tasks.b]\ntask = 'digits'\nmethod = 'mosa'\n")
    assert (first.name, first.config.task, first.config.method) == ("digits", "digits", "linear")
    assert (second.name, second.config.task, second.config.method) == ("b", "digits", "mosa")
    assert second.folder == second.config.out == tmp_path / "fleet" / "runs" / "b"


def test_all_faults_are_told_at_once_and_nothing_starts(read: Read, tmp_path: Path) -> None:
    text = """
[tasks.a]
task = "digits"
epoch = 3
[tasks.b]
data_dir = "nowhere"
[tasks.a]
task = "digits"
share = 1
[tasks.c]
task = "digits"
epochs = 0
[tasks.D]
task = "digits"
[tasks.e]
task = "digits"
shots = [5, 20]
[tasks.f]
task = "digits"
labels = ["here.csv", "there.csv"]
[tasks.g]
task = "digits"
backbone = "resnet18"
[tasks.h]
task = "sprites-location"
split = "80-10-10"
"""
    with pytest.raises(ConfigError) as caught:
        read(text)
    said = str(caught.value)
    assert "\n" not in said
    for fault in (
        "tasks.toml: [tasks.a] unknown option 'epoch'; did you mean epochs",
        f"[tasks.b] data_dir: there is no {tmp_path / 'nowhere'}",
        "[tasks.a in line 7] has a name that an earlier table has",
        "[tasks.a in line 7] share = 1: ",
        "[tasks.c] --epochs 0: at least 1",
        "[tasks.D] is no name of a task: lower-case letters",
        "[tasks.e] shots = [5, 20]: a fleet tunes each task once, give one number",
        f"[tasks.f] labels: there is no {tmp_path / 'here.csv'}",
        f"[tasks.f] labels: there is no {tmp_path / 'there.csv'}",
        "[tasks.g] resnet18 is a ResNet, not a plain ViT or Swin",
        "[tasks.h] --task sprites-location brings its own images",
    ):
        assert said.count(fault) == 1, fault
    assert not (tmp_path / "fleet").exists()


def test_another_backbone_takes_the_place_of_what_the_file_says_of_its_own(read: Read) -> None:
    text = "[defaults]\nbackbone = 'vit_small_patch14_dinov2.lvd142m'\nbackbone_weights = 'gone'\nimage_size = 98\n"
    (task,) = read(f"{text}[tasks.digits]\nepochs = 2\n", backbone=EMBEDDED)
    found = task.config
    assert (found.backbone, found.backbone_weights, found.image_size, found.epochs) == (EMBEDDED, None, None, 2)
    with pytest.raises(ConfigError, match=r"\[defaults\] backbone_weights: there is no .*gone$"):
        read(f"{text}[tasks.digits]\n")


def test_a_task_without_a_test_set_is_not_evaluated(read: Read, tmp_path: Path) -> None:
    for name in ("train", "validation"):
        write_jpegs(tmp_path / "images" / name, {"cat": 4, "dog": 4})
    images, digits = read(f"[defaults]\nbackbone = '{EMBEDDED}'\n[tasks.images]\ndata_dir = 'images'\n[tasks.digits]\n")
    assert images.waiting() == ["tune", "export"]
    assert digits.waiting() == ["tune", "evaluate", "export"]


def test_a_run_that_was_begun_with_other_options_is_named(read: Read) -> None:
    (before,) = read("[tasks.digits]\nepochs = 3\n")
    before.begin()
    (before.folder).mkdir(parents=True)
    (before.folder / CONFIG).write_text("{}")
    assert Notes.read(before.notes).options["epochs"] == "3"
    assert read("[tasks.digits]\nepochs = 3\ndevice = 'cpu'\nworkers = 2\n")
    with pytest.raises(
        ConfigError, match=r"\[tasks\.digits\] was begun with other options \(epochs was 3, is 4\): repeat"
    ):
        read("[tasks.digits]\nepochs = 4\n")


def test_the_example_is_in_order() -> None:
    tasks = fleet_tasks(FleetConfig(ROOT / "examples" / "tasks.toml"))
    assert len(tasks) == 6
    assert {task.config.method for task in tasks} >= {"auto", "linear", "mosa"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"jobs": 0, "image_size": 0}, r"^--jobs 0: at least 1; --image-size 0: at least 1"),
        ({"gpus": 0.5}, r"^--gpus 0\.5: more than 0, and with --ray$"),
        ({"gpus": 0.0, "ray": "auto"}, r"^--gpus 0: more than 0, and with --ray$"),
        (
            {"beside": Path("a"), "out": Path("b/../a")},
            r"^--beside a is --out: give the new fleet a folder of its own$",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FleetConfig(Path("tasks.toml"), **options)
