"""Pre-training reads each image once, and augments, crops and mixes on the device."""

import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mosa_deploy.errors import DataError
from tests.support.images import PRETRAINED_CLASSES, write_jpegs
from training.pretrain_data import POLICIES, Images, augment, crop_and_flip, mixing, read_images, split_held_out


def noise(count: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_archive_and_folder_hold_the_same_images(image_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(image_folder, "tiny")
    (classes, from_folder), (others, from_archive) = read_images(image_folder), read_images(tmp_path / "images.tar.gz")
    assert classes == others == PRETRAINED_CLASSES
    for split, count in (("train", 8), ("test", 3)):
        assert torch.equal(from_folder[split].pixels, from_archive[split].pixels)
        assert from_archive[split].labels.tolist() == [label for label in range(3) for _ in range(count)]
    with Image.open(image_folder / "train" / "cat" / "cat_1.jpg") as image:
        pixel = list(image.getpixel((5, 2)))  # type: ignore[arg-type]  # a pixel is a tuple in RGB
    assert from_folder["train"].pixels[8, :, 2, 5].tolist() == pixel


def test_data_that_cannot_be_used_is_one_line_that_names_it(image_folder: Path, tmp_path: Path) -> None:
    faults = {
        "gone": r"gone: no such file or folder; give a tar archive or a folder of train/<class>/\*\.jpg and test/",
        "text.tar": r"text\.tar is not a whole tar archive \(ReadError\): give a tar archive or a folder",
        "empty": r"empty holds no train/<class>/\*\.jpg: give a tar archive or a folder",
        "untested": r"untested holds no test/<class>/\*\.jpg: give a tar archive or a folder",
        "uneven": r"train and test differ in the classes dog: make them the same",
        "alone": r"alone holds the one class cat: classification needs at least two",
        "broken": r"train/dog/dog_1\.jpg is not a readable image \(UnidentifiedImageError\): repair or remove it",
        "mixed": r"mixed/train/dog/dog_1\.jpg has 16 x 8 pixels, \S+/mixed/train/cat/cat_1\.jpg 32 x 32: resize",
        "two": r"two holds train images of 32 x 32 and test images of 16 x 16 pixels: resize all images to one size",
    }
    (tmp_path / "text.tar").write_text("not an archive")
    (tmp_path / "empty").mkdir()
    write_jpegs(tmp_path / "untested" / "train", {"cat": 1, "dog": 1})
    write_jpegs(tmp_path / "uneven" / "train", {"cat": 1, "dog": 1})
    write_jpegs(tmp_path / "uneven" / "test", {"cat": 1})
    for split in ("train", "test"):
        write_jpegs(tmp_path / "alone" / split, {"cat": 1})
        for name in ("broken", "mixed"):
            write_jpegs(tmp_path / name / split, {"cat": 1, "dog": 1}, size=32)
        write_jpegs(tmp_path / "two" / split, {"cat": 1, "dog": 1}, size=32 if split == "train" else 16)
    (tmp_path / "broken" / "train" / "dog" / "dog_1.jpg").write_bytes(b"spoilt")
    Image.new("RGB", (16, 8)).save(tmp_path / "mixed" / "train" / "dog" / "dog_1.jpg")
    for name, line in faults.items():
        with pytest.raises(DataError, match=line):
            read_images(tmp_path / name)


def test_only_images_of_the_two_splits_are_read(tmp_path: Path) -> None:
    for split in ("train", "test", "validation"):
        write_jpegs(tmp_path / split, {"cat": 1, "dog": 1})
    (tmp_path / "train" / "cat" / "labels.txt").write_text("cat")
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "stray.jpg")
    assert [len(images) for images in read_images(tmp_path)[1].values()] == [2, 2]


def test_archive_that_was_cut_off_is_refused(image_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        archive.add(image_folder, "tiny")
    content = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"half\.tar\.gz is not a whole tar archive"):
        read_images(tmp_path / "half.tar.gz")


def test_held_out_images_are_not_trained_on_and_the_same_for_a_seed() -> None:
    images = Images(torch.arange(50), torch.arange(50) % 3)
    rest, held_out = split_held_out(images, 10, seed=4)
    assert len(held_out) == 10
    assert sorted([*rest.pixels.tolist(), *held_out.pixels.tolist()]) == list(range(50))
    assert torch.equal(held_out.labels, held_out.pixels % 3)
    assert torch.equal(held_out.pixels, split_held_out(images, 10, seed=4)[1].pixels)
    assert not torch.equal(held_out.pixels, split_held_out(images, 10, seed=5)[1].pixels)
    with pytest.raises(DataError, match="--held-out 50 of 50 training images leaves none to train on: lower it"):
        split_held_out(images, 50, seed=4)


def test_each_image_is_cropped_and_flipped_by_a_draw_of_its_own() -> None:
    pixels = noise(120)
    torch.manual_seed(0)
    found = set()
    for given, image in zip(crop_and_flip(pixels), pixels, strict=True):
        padded = F.pad(image, [4] * 4)
        matches = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            if torch.equal(given.flip(-1) if flip else given, padded[:, top : top + 32, left : left + 32])
        ]
        assert len(matches) == 1
        found.update(matches)
    assert len(found) > 60
    for draws in zip(*found, strict=True):
        assert len(set(draws)) in (2, 9)


def test_policy_gets_every_image_once_in_random_groups_and_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[int]] = []

    def invert(pixels: Tensor) -> Tensor:
        groups.append(pixels[:, 0, 16, 16].tolist())
        return 255 - pixels

    monkeypatch.setitem(POLICIES, "trivial", lambda: invert)
    grey = torch.arange(1, 151, dtype=torch.uint8)
    torch.manual_seed(0)
    given = augment(grey[:, None, None, None].expand(150, 3, 32, 32), "trivial")
    assert torch.equal(given[:, 0, 16, 16], 255 - grey)
    assert [len(group) for group in groups] == [64, 64, 22]
    assert sorted(value for group in groups for value in group) == grey.tolist()
    assert max(groups[0]) > 128
    assert max(groups[2]) - min(groups[2]) > 64


def test_policies_change_what_crop_and_flip_leave() -> None:
    given = {}
    for policy in POLICIES:
        torch.manual_seed(1)
        given[policy] = augment(noise(64), policy)
        assert (given[policy].shape, given[policy].dtype) == ((64, 3, 32, 32), torch.uint8)
    torch.manual_seed(1)
    order = torch.randperm(64)
    assert torch.equal(given["none"][order], crop_and_flip(noise(64)[order]))
    assert not torch.equal(given["trivial"], given["none"])
    assert not torch.equal(given["rand"], given["none"])
    assert not torch.equal(given["rand"], given["trivial"])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_labels_are_the_shares_of_the_mixed_pixels(mixup: float, cutmix: float) -> None:
    mix = mixing(mixup, cutmix, classes=5)
    torch.manual_seed(0)
    shares = []
    for _ in range(20):
        labels = torch.arange(5)
        inputs = torch.eye(5)[:, :, None, None].expand(5, 5, 32, 32)  # channel k holds the share of image k
        mixed, targets = mix(inputs, labels)
        assert torch.allclose(mixed.mean((2, 3)), targets, atol=1e-6)
        shares.append(float(targets[0, 0]))
    assert len(set(shares)) > 10
    assert 0 < min(shares) < max(shares) < 1


def test_without_mixing_a_batch_stays_as_it_is() -> None:
    inputs, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    mixed, targets = mixing(0.0, 0.0, classes=5)(inputs, labels)
    assert mixed is inputs
    assert targets is labels
