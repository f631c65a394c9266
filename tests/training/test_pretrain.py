import csv
import json
import subprocess
import sys
import tarfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor

from mosa_deploy import embedded
from tests.training.conftest import write_jpegs
from training import pretrain
from training.pretrain import Augment, Images, PretrainConfig, parse, read_images, split_held_out, train_epoch

CLASSES = ("bird", "cat", "ship")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 training and 9 test images."""
    folder = tmp_path_factory.mktemp("images")
    write_jpegs(folder / "train", dict.fromkeys(CLASSES, 8), size=32)
    write_jpegs(folder / "test", dict.fromkeys(CLASSES, 3), size=32)
    return folder


@pytest.fixture(scope="module")
def config(data: Path) -> PretrainConfig:
    return PretrainConfig(
        data=data,
        epochs=2,
        full_epochs=1,
        batch_size=8,
        held_out=4,
        patch_drop_rate=0.5,
        drop_path_rate=0.1,
        trivial_augment=True,
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


def third_party(program: str) -> set[str]:
    """The top-level packages outside the standard library that a program leaves imported."""
    code = f"{program}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return {name for name in run.stdout.split() if name not in sys.stdlib_module_names}


def test_archive_and_folder_hold_the_same_images(data: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(data, "tiny")
    from_folder, from_archive = read_images(data), read_images(tmp_path / "images.tar.gz")
    for split, count in (("train", 8), ("test", 3)):
        assert torch.equal(from_folder[split].pixels, from_archive[split].pixels)
        assert from_archive[split].labels.tolist() == [label for label in range(3) for _ in range(count)]
    with Image.open(data / "train" / "cat" / "cat_1.jpg") as image:
        pixel = list(image.getpixel((5, 2)))  # type: ignore[arg-type]  # a pixel is a tuple in RGB
    assert from_folder["train"].pixels[8, :, 2, 5].tolist() == pixel


def test_source_without_images_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: no <split>/<class>/\*\.jpg in "):
        read_images(tmp_path)


def test_held_out_images_are_not_trained_on_and_the_same_for_a_seed() -> None:
    images = Images(torch.arange(50), torch.arange(50) % 3)
    rest, held_out = split_held_out(images, 10, seed=4)
    assert len(held_out.pixels) == 10
    assert sorted([*rest.pixels.tolist(), *held_out.pixels.tolist()]) == list(range(50))
    assert torch.equal(held_out.labels, held_out.pixels % 3)
    assert torch.equal(held_out.pixels, split_held_out(images, 10, seed=4)[1].pixels)
    assert not torch.equal(held_out.pixels, split_held_out(images, 10, seed=5)[1].pixels)


@pytest.mark.parametrize("trivial", [False, True])
def test_augmentation_keeps_shape_and_type_and_changes_the_pixels(trivial: bool) -> None:
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    given = Augment(32, trivial)(pixels)
    assert given.shape == pixels.shape
    assert given.dtype == torch.uint8
    assert not torch.equal(given, pixels)


def test_patches_are_dropped_until_the_last_full_epochs(config: PretrainConfig) -> None:
    model = pretrain.build(config, 3)
    tokens: list[int] = []
    model.get_submodule("blocks.0").register_forward_hook(lambda *given: tokens.append(given[2].shape[1]))
    images = read_images(config.data)["train"]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    schedule = CosineLRScheduler(optimizer, t_initial=10, t_in_epochs=False)
    for epoch in (0, 1):
        train_epoch(model, ModelEmaV3(model), optimizer, schedule, images, config, epoch)
    assert tokens == [32] * 3 + [64] * 3


def test_interrupted_and_resumed_equals_unbroken(
    config: PretrainConfig, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = pretrain.save

    def save_and_stop(*state: Any) -> None:
        save(*state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(replace(config, out=tmp_path))
    pretrain.pretrain(replace(config, out=tmp_path))
    resumed, once = (torch.load(out / "checkpoint.pt", weights_only=True) for out in (tmp_path, unbroken))
    for part in ("model", "average"):
        tensors: dict[str, Tensor] = resumed[part]
        assert all(value.dtype == torch.float32 for value in tensors.values())
        assert [name for name, value in tensors.items() if not torch.equal(value, once[part][name])] == []
    assert [row["loss"] for row in history(tmp_path)] == [row["loss"] for row in history(unbroken)]


def test_history_has_a_row_an_epoch(unbroken: Path) -> None:
    rows = history(unbroken)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["held_out"]) <= 1 for row in rows)


def test_weights_are_fp16_fit_timm_and_give_the_recorded_accuracy(unbroken: Path, data: Path) -> None:
    state = load_file(unbroken / "weights.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    model = timm.create_model(embedded.ARCHITECTURE, num_classes=3).eval()
    model.load_state_dict(state)
    test = read_images(data)["test"]
    with torch.no_grad():
        right = model(test.pixels.float() / 127.5 - 1).argmax(1) == test.labels
    recorded = json.loads((unbroken / "metrics.json").read_text())
    assert recorded["test_accuracy"] == pytest.approx(float(right.float().mean()))


def test_every_field_is_a_flag() -> None:
    flags = ["--data", "images", "--no-trivial-augment", "--lr", "0.5", "--epochs", "7", "--out", "there"]
    given = parse(flags)
    assert (given.data, given.out) == (Path("images"), Path("there"))
    assert (given.trivial_augment, given.lr, given.epochs) == (False, 0.5, 7)
    for field in fields(PretrainConfig):
        if field.name not in ("data", "out", "trivial_augment", "lr", "epochs"):
            assert getattr(given, field.name) == field.default


def test_only_torch_and_timm_are_needed() -> None:
    allowed = third_party("import torch, timm, torchvision, safetensors, PIL")
    assert third_party("import training.pretrain") - allowed == {"training", "mosa_deploy"}
