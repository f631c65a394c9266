import csv
import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mosa_deploy.backbones import embedded
from mosa_deploy.errors import ConfigError, MosaError, TrainingError
from tests.support.images import PRETRAINED_CLASSES
from training import pretrain
from training.pretrain import start, train_epoch
from training.pretrain_config import PretrainConfig, parse
from training.pretrain_data import read_images

NOT_AT_HAND = ("tyro", "sklearn", "scipy", "matplotlib", "pydantic", "tqdm", "torchmetrics", "onnx", "onnxruntime")


@pytest.fixture(scope="module")
def config(image_folder: Path) -> PretrainConfig:
    """Everything random turned on, at depth 2."""
    return PretrainConfig(
        data=image_folder,
        depth=2,
        epochs=3,
        full_epochs=1,
        batch_size=8,
        held_out=4,
        patch_drop_rate=0.5,
        drop_path_rate=0.1,
        augment="trivial",
        mixup=0.8,
        cutmix=1.0,
        warmup_epochs=0.5,
        device="cpu",
    )


@pytest.fixture(scope="module")
def unbroken(config: PretrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pre-training that nothing interrupted."""
    out = tmp_path_factory.mktemp("unbroken")
    pretrain.pretrain(replace(config, out=out))
    return out


def history(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_patches_are_dropped_until_the_last_full_epochs(config: PretrainConfig) -> None:
    classes, splits = read_images(config.data)
    run = start(config, splits["train"], len(classes))
    tokens: list[int] = []
    run.model.get_submodule("blocks.0").register_forward_hook(lambda *given: tokens.append(given[2].shape[1]))
    for _ in range(3):
        train_epoch(run, splits["train"], config)
        run.history.append({})
    assert tokens == [32] * 6 + [64] * 3


def test_depth_is_that_of_the_model(config: PretrainConfig) -> None:
    assert len(pretrain.build(replace(config, depth=9), 10).blocks) == 9
    assert len(pretrain.build(replace(config, depth=None), 10).blocks) == 6


@pytest.mark.parametrize("stop", [1, 2])
def test_interrupted_and_resumed_equals_unbroken(
    stop: int, config: PretrainConfig, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = pretrain.save

    def save_and_stop(out: Path, run: pretrain.Run, recipe: dict[str, object]) -> None:
        save(out, run, recipe)
        if len(run.history) == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "SAVE_SECONDS", 0.0)
        patch.setattr(pretrain, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(replace(config, out=tmp_path))
    assert len(history(tmp_path)) == stop
    pretrain.pretrain(replace(config, out=tmp_path))
    resumed, once = (torch.load(out / "checkpoint.pt", weights_only=True) for out in (tmp_path, unbroken))
    for part in ("model", "average"):
        tensors: dict[str, Tensor] = resumed[part]
        assert all(value.dtype == torch.float32 for value in tensors.values())
        assert [name for name, value in tensors.items() if not torch.equal(value, once[part][name])] == []
    assert (tmp_path / "weights.safetensors").read_bytes() == (unbroken / "weights.safetensors").read_bytes()
    assert [row["loss"] for row in history(tmp_path)] == [row["loss"] for row in history(unbroken)]


def test_checkpoint_of_another_recipe_is_refused_with_what_differs(config: PretrainConfig, unbroken: Path) -> None:
    kept = (unbroken / "checkpoint.pt").read_bytes()
    line = r"holds another run \(epochs was 3, is 4; lr was 0\.001, is 0\.002\): repeat its flags, or choose --out"
    with pytest.raises(ConfigError, match=line):
        pretrain.pretrain(replace(config, out=unbroken, lr=2e-3, epochs=4))
    assert (unbroken / "checkpoint.pt").read_bytes() == kept


def test_damaged_checkpoint_is_named(config: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"spoilt")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be read: remove it to start again"):
        pretrain.pretrain(replace(config, out=tmp_path))


def test_run_leaves_its_history_its_curves_and_what_it_was_made_with(unbroken: Path, config: PretrainConfig) -> None:
    rows = history(unbroken)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["held_out"]) <= 1 for row in rows)
    cosines = [(1 + math.cos(math.pi * update / 9)) / 2 for update in (2, 5, 8)]  # the last of each 3 of 9 updates
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-6 + (1e-3 - 1e-6) * cosine for cosine in cosines])
    with Image.open(unbroken / "curves.png") as image:
        assert image.size == (1350, 510)
    record = json.loads((unbroken / "metrics.json").read_text())
    assert (record["lr"], record["images"], record["classes"]) == (config.lr, 24, list(PRETRAINED_CLASSES))
    assert record["versions"]["timm"] == timm.__version__


def test_weights_are_fp16_fit_timm_and_give_the_recorded_accuracy(unbroken: Path, image_folder: Path) -> None:
    state = load_file(unbroken / "weights.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    model = timm.create_model(embedded.ARCHITECTURE, num_classes=3, depth=2).eval()
    model.load_state_dict(state)
    test = read_images(image_folder)[1]["test"]
    with torch.no_grad():
        right = model(test.pixels.float() / 127.5 - 1).argmax(1) == test.labels
    recorded = json.loads((unbroken / "metrics.json").read_text())
    assert recorded["test_accuracy"] == pytest.approx(float(right.float().mean()))


def test_loss_that_is_not_finite_ends_the_run_in_one_line(config: PretrainConfig, tmp_path: Path) -> None:
    line = r"the loss is nan: lower --lr \(now 1e\+30\) and choose another --out"
    with pytest.raises(TrainingError, match=line):
        pretrain.pretrain(replace(config, out=tmp_path, lr=1e30, warmup_epochs=0.0))


def test_memory_that_does_not_suffice_is_one_line(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(pretrain, "train_epoch", exhausted)
    with pytest.raises(TrainingError, match=r"^out of memory at epoch 1: --batch-size 4 halves what a step needs$"):
        pretrain.pretrain(replace(config, out=tmp_path))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"epochs": 2, "full_epochs": 3}, r"^--full-epochs 3 is more than --epochs 2: lower it$"),
        ({"epochs": 2, "warmup_epochs": 2.0}, r"^--warmup-epochs 2 leaves nothing of --epochs 2: lower it$"),
        ({"batch_size": 0, "ema_decay": 1.0}, r"^--batch-size 0: at least 1; --ema-decay 1: at least 0 and below 1$"),
        ({"lr": float("nan")}, r"^--lr nan: at least 1e-09$"),
        ({"mixup": float("inf")}, r"^--mixup inf: at least 0$"),
        ({"opt": "adamv"}, r"^unknown optimiser 'adamv'; did you mean adam or "),
        ({"architecture": "vit_tinyd6_patch4_23"}, r"unknown architecture .*; did you mean vit_tinyd6_patch4_32 or "),
        ({"architecture": "resnet18"}, r"resnet18.*; choose a plain vit_\*$"),
        (
            {"architecture": "vit_tiny_patch16_224"},
            r"^the images are \(32, 32\), vit_tiny_patch16_224 reads \(224, 224\)",
        ),
        ({"out": Path(__file__)}, r"test_pretrain\.py is a file: choose a folder$"),
    ],
)
def test_flags_that_cannot_be_are_one_line(config: PretrainConfig, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(MosaError, match=line):
        pretrain.pretrain(replace(config, **changes))


def test_every_field_is_a_flag_with_its_default() -> None:
    given = parse(["--data", "images", "--augment", "rand", "--lr", "0.5", "--depth", "9", "--out", "there"])
    assert given == PretrainConfig(data=Path("images"), augment="rand", lr=0.5, depth=9, out=Path("there"))
    for field in fields(PretrainConfig):
        flag = "--" + field.name.replace("_", "-")
        with pytest.raises(SystemExit) as stop:
            parse([flag])
        assert stop.value.code == 2


def test_users_mistake_ends_the_command_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.pretrain", "--data", str(tmp_path / "gone"), "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: --data {tmp_path / 'gone'}: no such file or folder; ")
    assert run.stderr.count("\n") == 1


def test_torch_torchvision_and_timm_are_all_that_a_run_needs(image_folder: Path, tmp_path: Path) -> None:
    flags = [
        "--data",
        image_folder,
        "--out",
        tmp_path,
        "--depth",
        1,
        "--epochs",
        1,
        "--full-epochs",
        0,
        "--warmup-epochs",
        0,
    ]
    flags += ["--held-out", 4, "--augment", "rand", "--mixup", 1, "--cutmix", 1, "--device", "cpu"]
    code = f"import sys; sys.modules.update(dict.fromkeys({NOT_AT_HAND})); sys.argv += {[str(flag) for flag in flags]}"
    code += "; from training.pretrain import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert "no curves.png: matplotlib is not installed\ntest accuracy " in run.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.pt",
        "weights.safetensors",
        "history.csv",
        "metrics.json",
    }


def test_nothing_else_is_imported() -> None:
    code = "import sys, torch, timm, torchvision, safetensors, PIL; old = set(sys.modules); import training.pretrain"
    code += "; print(*{name.partition('.')[0] for name in set(sys.modules) - old})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    added = {*run.stdout.split()} - sys.stdlib_module_names
    assert added - {"torch", "timm", "torchvision", "safetensors", "PIL"} == {"training", "mosa_deploy"}
