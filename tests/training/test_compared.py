"""The tasks of a comparison, what is checked before it runs, and where its trials begin."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.errors import ConfigError
from training.compare import Cell
from training.compared import check, compared_tasks, preset
from training.config import TuneConfig
from training.options import CompareConfig
from training.task_file import read_task_file
from training.trials import centre

DINO = "vit_small_patch14_dinov2.lvd142m"

FILE = """
[defaults]
backbone = "vit_tiny_patch16_224.augreg_in21k"
backbone_weights = "weights/tiny.safetensors"
shots = [5, 20]
epochs = 30

[tasks.flowers]
data_dir = "flowers.tar"

[tasks.digits]
epochs = 10
shots = 8
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.toml"
    path.write_text(FILE)
    return path


def test_a_file_gives_each_task_the_defaults_and_its_own_options(file: Path) -> None:
    flowers, digits = read_task_file(file).values()
    weights = file.parent / "weights/tiny.safetensors"
    usual = {"backbone": "vit_tiny_patch16_224.augreg_in21k", "backbone_weights": weights}
    own = {"task": "folder", "data_dir": file.parent / "flowers.tar", "shots": (5, 20), "epochs": 30}
    assert flowers == usual | own
    assert digits == usual | {"task": "digits", "shots": (8,), "epochs": 10}


def test_a_task_is_compared_once_for_each_number_of_images(file: Path) -> None:
    bases = compared_tasks(CompareConfig(tasks_file=file))
    assert [(base.name, base.shots, base.epochs) for base in bases] == [
        ("flowers", 5, 30),
        ("flowers", 20, 30),
        ("digits", 8, 10),
    ]


def test_the_command_line_goes_before_the_file(file: Path) -> None:
    config = CompareConfig(tasks="digits", tasks_file=file, epochs=2, shots="3", backbone=EMBEDDED, adapt_blocks=2)
    (base,) = compared_tasks(config)
    assert (base.name, base.shots, base.epochs, base.backbone, base.adapt_blocks) == ("digits", 3, 2, EMBEDDED, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tasks.a]\nepochs = 'many'", r"\[tasks\.a\] epochs = 'many': input should be a valid integer"),
        ("[tasks.a]\nepoch = 2", r"\[tasks\.a\] unknown option 'epoch'; did you mean epochs"),
        ("[tasks.a]\ntask = 'digit'", r"\[tasks\.a\] unknown task 'digit'; did you mean digits"),
        ("[tasks.a]\nseed = 2", r"\[tasks\.a\] unknown option 'seed'"),
        ("[task.a]\nseed = 2", r"\[task\] is no table of this file"),
        ("[defaults]\nepochs = 2", r"it has no task: add \[tasks\.NAME\]"),
        ("[tasks]\na = 2", r"tasks\.a is no table"),
        ("[tasks.a", r"cannot be read"),
        ("[tasks.a]\n[tasks.b]\n[tasks.a]", r"\[tasks\.a in line 3\] has a name that an earlier table has$"),
    ],
)
def test_a_fault_of_the_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^--tasks-file \S+tasks\.toml:? {said}"):
        read_task_file(path)


def test_a_file_that_was_written_on_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text("[tasks.digits]\r\nepochs = 2\r\n", encoding="utf-8-sig", newline="")
    assert read_task_file(path)["digits"]["epochs"] == 2


def test_all_faults_of_the_file_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text("[defaults]\nlr = 'high'\n[tasks.a]\nepoch = 2\nshots = ['x']\n")
    with pytest.raises(ConfigError) as caught:
        read_task_file(path)
    text = str(caught.value)
    assert "\n" not in text
    for fault in ("[defaults] lr = 'high'", "[tasks.a] unknown option 'epoch'", "[tasks.a] shots = ['x']"):
        assert fault in text


def test_options_of_every_group_stand_in_a_task_s_table(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text("[tasks.digits]\naugment = 'flip'\npatience = 2\ncache_size = 1.5\naccumulate = 2\n")
    (base,) = compared_tasks(CompareConfig(tasks_file=path))
    assert (base.augmentation.augment, base.optimisation.patience) == ("flip", 2)
    assert (base.streaming.cache_size, base.execution.accumulate) == (1.5, 2)


@pytest.mark.parametrize(
    ("methods", "options", "said"),
    [
        (
            "lora,mosl",
            {"backbone": "swin_tiny_patch4_window7_224"},
            r"^low-rank adapters: a Swin takes adapters beside",
        ),
        ("mosa", {"backbone": "resnet18"}, r"^resnet18 is a ResNet, not a plain ViT or Swin"),
        ("mosa", {"backbone": "vit_of_mine"}, r"^unknown backbone 'vit_of_mine'"),
        ("mosa", {"adapt_blocks": 7}, r"^--adapt-blocks 7: the backbone has 6 blocks$"),
        ("mosa", {"adapt_blocks": 0}, r"^--adapt-blocks 0: at least 1$"),
        ("mosa", {"image_size": 30}, r"^images of 30 x 30: give multiples of the patch size"),
        ("mosa", {"epochs": 0}, r"^--epochs 0: at least 1$"),
        ("linear", {"shots": "500"}, r"^--shots 500: class '.' has 1\d\d training images; give fewer shots$"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(methods: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(compared_tasks(CompareConfig(tasks="digits", **options)), methods.split(","))


def test_faults_of_several_tasks_are_named_at_once() -> None:
    tasks = compared_tasks(CompareConfig(tasks="digits,eurosat", adapt_blocks=13))
    with pytest.raises(ConfigError) as caught:
        check(tasks, ["mosa"])
    assert str(caught.value).startswith("digits: --adapt-blocks 13: the backbone has 6 blocks; eurosat: ")
    assert "--adapt-blocks 13: the backbone has 12 blocks" in str(caught.value)


def test_every_fault_of_the_options_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^--jobs 0: at least 1; --shots x: a whole number, at least 1; --methods"):
        CompareConfig(jobs=0, shots="5,x", methods=",")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TuneConfig("digits", method="mosa"), (1e-2, 1.0)),
        (TuneConfig("digits", method="lora"), (1e-2, 1.0)),
        (TuneConfig("digits", method="mosa", backbone=DINO), (5e-3, 0.3)),
        (TuneConfig("digits", method="lora", backbone=DINO), (2e-3, 1.0)),
        (TuneConfig("digits", method="repadapter", backbone=DINO, scale=0.3), (5e-3, 1.0)),
        (TuneConfig("digits", method="ssf", backbone=DINO), (5e-3, 1.0)),
        (TuneConfig("eurosat", method="adapter", backbone=EMBEDDED), (1e-2, 1.0)),
        (TuneConfig("digits", method="adapter", backbone=DINO, lr=2e-3, scale=0.5), (2e-3, 0.5)),
    ],
)
def test_trials_begin_at_what_suits_the_backbone(config: TuneConfig, expected: tuple[float, float]) -> None:
    found = centre(config, preset(config))
    assert (found.lr, found.scale) == pytest.approx(expected)


def test_a_task_with_a_scale_is_compared_by_ssf_too() -> None:
    base = TuneConfig("digits", name="digits", scale=0.3, bottleneck=16)
    check([base], ["adapter", "ssf"])
    assert Cell(base, "ssf", (("lr", 2.0),), 0).config(Path("out")).lr == 2e-2


def test_a_run_has_the_lr_and_scale_of_its_trial(tmp_path: Path) -> None:
    base = TuneConfig("digits", name="digits", backbone=DINO)
    cell = Cell(base, "adapter", (("lr", 2.0), ("scale", 0.25)), 1)
    config = cell.config(tmp_path)
    assert (config.lr, config.scale, config.seed, config.draw) == (1e-2, 0.075, 1, 0)
    assert replace(cell, base=replace(base, shots=4)).config(tmp_path).draw == 1
