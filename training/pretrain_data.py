"""Images of pre-training: decoded once into one uint8 tensor, and augmented on its device."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from mosa_deploy.errors import DataError

SPLITS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")
LAYOUT = "give a tar archive or a folder of train/<class>/*.jpg and test/<class>/*.jpg"

GROUP = 64
"""Number of images that share one draw of TrivialAugment or RandAugment, since torchvision draws once per call."""

POLICIES: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "trivial": v2.TrivialAugmentWide,
    "rand": v2.RandAugment,
}

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Images:
    """Decoded images (N, 3, H, W) uint8 with their labels (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> Images:
        """The images of the given indices."""
        return Images(self.pixels[index], self.labels[index])

    def to(self, device: str) -> Images:
        """The same images on another device."""
        return Images(self.pixels.to(device), self.labels.to(device))


def read_images(source: Path) -> tuple[tuple[str, ...], dict[str, Images]]:
    """Decode `.../{train,test}/<class>/<name>.jpg` in a tar archive or a folder.

    Returns the classes, sorted by name, and each split's images, sorted by path.

    Raises:
        DataError: the layout is another, an image cannot be read, or the image sizes differ.
    """
    found: dict[str, list[tuple[str, bytes]]] = {split: [] for split in SPLITS}
    for path, content in _encoded_files(source):
        found[PurePath(path).parts[-3]].append((path, content))
    for split, files in found.items():
        if not files:
            raise DataError(f"--data {source} holds no {split}/<class>/*.jpg: {LAYOUT}")
    classes, tested = (tuple(sorted({_class_of(path) for path, _ in found[split]})) for split in SPLITS)
    if classes != tested:
        odd = ", ".join(sorted({*classes} ^ {*tested}))
        raise DataError(f"--data {source}: train and test differ in the classes {odd}: make them the same")
    if len(classes) < 2:
        raise DataError(f"--data {source} holds the one class {classes[0]}: classification needs at least two")
    splits = {split: _decode(sorted(files), classes) for split, files in found.items()}
    shapes = {split: tuple(images.pixels.shape[2:]) for split, images in splits.items()}
    if shapes["train"] != shapes["test"]:
        sizes = " and ".join(f"{split} images of {w} x {h}" for split, (h, w) in shapes.items())
        raise DataError(f"--data {source} holds {sizes} pixels: resize all images to one size")
    return classes, splits


def _class_of(path: str) -> str:
    return PurePath(path).parts[-2]


def _wanted(path: str) -> bool:
    parts = PurePath(path).parts
    return len(parts) >= 3 and parts[-3] in SPLITS and path.lower().endswith(SUFFIXES)


def _encoded_files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in source.rglob("*"):
            if _wanted(path.as_posix()):
                yield path.as_posix(), path.read_bytes()
        return
    if not source.exists():
        raise DataError(f"--data {source}: no such file or folder; {LAYOUT}")
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                content = archive.extractfile(member) if _wanted(member.name) else None
                if content is not None:
                    yield member.name, content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"--data {source} is not a whole tar archive ({type(error).__name__}): {LAYOUT}") from error


def _decode(files: list[tuple[str, bytes]], classes: tuple[str, ...]) -> Images:
    """Decode the files of one split. All images must have the size of the first one."""
    pixels: list[Tensor] = []
    for path, content in files:
        try:
            image = Image.open(io.BytesIO(content)).convert("RGB")
        except Exception as error:  # On damaged bytes Pillow also raises struct.error, TypeError and RuntimeError.
            raise DataError(f"{path} is not a readable image ({type(error).__name__}): repair or remove it") from error
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels.append(flat.view(image.height, image.width, 3).permute(2, 0, 1))
        if pixels[-1].shape != pixels[0].shape:
            _, height, width = pixels[0].shape
            raise DataError(
                f"{path} has {image.width} x {image.height} pixels, {files[0][0]} {width} x {height}:"
                " resize all images to one size"
            )
    return Images(torch.stack(pixels), torch.tensor([classes.index(_class_of(path)) for path, _ in files]))


def split_held_out(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """Split images at random, by seed, into (training images, `count` held-out images).

    Raises:
        DataError: there would be no training images.
    """
    if count >= len(images):
        raise DataError(f"--held-out {count} of {len(images)} training images leaves none to train on: lower it")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.subset(order[count:]), images.subset(order[:count])


def crop_and_flip(pixels: Tensor) -> Tensor:
    """Shift each image (N, 3, H, W) by up to 1/8 of its side, padded with black, and flip it with probability 1/2."""
    count, _, height, width = pixels.shape
    margin, device = height // 8, pixels.device
    windows = F.pad(pixels, [margin] * 4).unfold(2, height, 1).unfold(3, width, 1)
    top, left = torch.randint(0, 2 * margin + 1, (2, count), device=device)
    cropped = windows[torch.arange(count, device=device), :, top, left]
    return torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, cropped.flip(-1), cropped)


def augment(pixels: Tensor, policy: str) -> Tensor:
    """Augment the images (N, 3, H, W) uint8 of an epoch: crop and flip each image, then apply the policy by group.

    A group is `GROUP` random images that share one draw of the policy. Batches are drawn from all images later, so each
    batch mixes many draws, and the number of calls does not grow with the number of batches.
    """
    transform, augmented = POLICIES[policy](), torch.empty_like(pixels)
    for group in torch.randperm(len(pixels)).to(pixels.device).split(GROUP):
        augmented[group] = transform(crop_and_flip(pixels[group]))
    return augmented


def mixing(mixup: float, cutmix: float, classes: int) -> Mix:
    """A function that mixes a batch with itself, shifted by one image, in shares drawn from Beta(a, a).

    `mixup` and `cutmix` are the a of MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899); 0 turns one off. With both
    on, each batch draws one of them. Mixed labels are probabilities (B, K).
    """
    kinds = [
        kind(alpha=alpha, num_classes=classes) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha
    ]
    mix: Mix = v2.RandomChoice(kinds) if kinds else lambda inputs, labels: (inputs, labels)
    return mix


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float in [-1, 1], with the mean and deviation of 0.5 in the backbone's data config."""
    return pixels.float().div_(127.5).sub_(1.0)
