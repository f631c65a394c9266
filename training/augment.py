"""Random changes of the training images, by timm's own transforms and presets.

Crops, flips, policies and erasing change images one by one, on the CPU. Mixup and cutmix mix the images of a batch, on
its device. All come before normalisation and before the passes of a step, which therefore see the same images.

What happens to an image follows from the seed, the epoch, its row in the set and its place in the epoch, and how a
batch is mixed from the seed, the epoch and the step. So a resumed run equals an unbroken one, whatever the number of
processes. timm draws from the global generators of Python, numpy and torch: they are seeded anew for each image, and
put back after each batch.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision.transforms import Compose, RandomHorizontalFlip

from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.utils.seeds import derive
from training.data import Batch
from training.recipe import Recipe
from training.tune_options import Augment
from training.workers import Workers, finish

POLICIES: dict[str, str | None] = {"crop": None, "auto": "original", "randaug": "rand-m9-mmax9-mstd0.5-inc1"}
"""The augmentations that crop, and what timm calls the policy that follows the crop.

AutoAugment is that of its paper for ImageNet; RandAugment has the magnitude and the noise of timm's recipes. Its
magnitude stays below 10 (mmax), at which posterising would keep no bit of an image: Pillow refuses that from 13 on.
"""

NUMERATOR, DENOMINATOR = 8, 7
"""Images to be cropped are read at this multiple of the input size: 256 pixels for 224, as in the paper."""


def margin(preprocess: Preprocess, augment: str) -> Preprocess | None:
    """How training images that are to be cropped are read: larger, and nothing is cut off that a crop may show."""
    if augment not in POLICIES:
        return None
    height, width = (-(-side * NUMERATOR // DENOMINATOR) for side in preprocess.size)
    return preprocess.model_copy(update={"size": (height, width), "crop_pct": 1.0})


def switched_on(recipe: Recipe) -> list[str]:
    """The options of the augmentations in a recipe: `--augment crop`, `--mixup 0.2`."""
    given = [f"--augment {recipe.augment}"] if recipe.augment != "none" else []
    return given + [f"--{name} {value:g}" for name in ("erase", "mixup", "cutmix") if (value := getattr(recipe, name))]


@dataclass(frozen=True)
class Changes:
    """How single images are changed. It is small, and other processes make the transforms from it."""

    augment: Augment
    erase: float
    """The probability with which a rectangle of an image takes the mean colour."""
    preprocess: Preprocess

    def __call__(self, pixels: Pixels, seeds: Sequence[int]) -> Pixels:
        """Change images, each by a seed of its own: (B, H', W', 3) -> (B, H, W, 3), uint8."""
        if not len(pixels):
            return pixels
        with generators() as begin:
            return np.stack([self._changed(image, begin, seed) for image, seed in zip(pixels, seeds, strict=True)])

    def _changed(self, image: Pixels, begin: Callable[[int], None], seed: int) -> Pixels:
        begin(seed)
        changed = np.asarray(transform(self)(Image.fromarray(image)))
        if not self.erase:
            return changed
        kept = RandomErasing(self.erase, device="cpu")(torch.ones(1, *self.preprocess.size))
        mean = np.round(255 * np.array(self.preprocess.mean)).astype(np.uint8)
        return np.where(kept[0, :, :, None].numpy() == 1, changed, mean)


@cache
def transform(changes: Changes) -> Any:
    """What changes a Pillow image, without erasing."""
    if changes.augment not in POLICIES:
        return RandomHorizontalFlip(0.5 if changes.augment == "flip" else 0.0)
    preprocess = changes.preprocess
    crop, policy, _ = transforms_imagenet_train(
        preprocess.size,
        color_jitter=None,  # type: ignore[arg-type] # timm tests for None, its annotation does not know it
        auto_augment=POLICIES[changes.augment],
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        separate=True,
    )
    return Compose([crop, policy])


@contextmanager
def generators() -> Iterator[Callable[[int], None]]:
    """Gives a function that seeds the global generators of Python, numpy and torch; afterwards they are as before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield _seed
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would seed the generators of all GPUs too.
    torch.default_generator.manual_seed(seed)


@dataclass(frozen=True)
class Augmentation:
    """What a recipe does to training images."""

    recipe: Recipe
    preprocess: Preprocess
    classes: int
    seed: int
    device: str

    @property
    def is_on(self) -> bool:
        """Whether anything is changed, so that an image differs from epoch to epoch."""
        return bool(switched_on(self.recipe))

    @cached_property
    def changes(self) -> Changes | None:
        """How single images are changed; None if they are not."""
        recipe = self.recipe
        if recipe.augment == "none" and not recipe.erase:
            return None
        return Changes(recipe.augment, recipe.erase, self.preprocess)

    def changed(self, batches: Iterator[Batch], epoch: int, workers: Workers) -> Iterator[Batch]:
        """The batches of an epoch with changed images. If there are worker processes, they go some batches ahead."""
        if self.changes is None:
            yield from batches
            return
        pending: deque[tuple[Batch, Callable[[], Pixels]]] = deque()
        for step, batch in enumerate(batches):
            places = zip(batch.cut.rows.tolist(), batch.cut.places.tolist(), strict=True)
            seeds = [derive(self.seed, "augment", epoch, row, step, place) for row, place in places]
            job: Callable[[], Pixels] = partial(self.changes, batch.pixels.numpy(), seeds)
            pending.append((batch, partial(finish, workers.submit(job)) if workers.count else job))
            if len(pending) > workers.count:
                yield _with(*pending.popleft())
        while pending:
            yield _with(*pending.popleft())

    def mixed(self, batch: Batch, epoch: int, step: int) -> Batch:
        """A batch after mixup or CutMix, computed on the device; its labels are then probabilities.

        timm mixes the first image with the last, and so on. Of an odd number of images the last one stays as it is.
        """
        recipe = self.recipe
        if not recipe.mixup and not recipe.cutmix:
            return batch
        mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=self.classes)
        labels = batch.labels.to(self.device)
        images, targets = batch.pixels.to(self.device).permute(0, 3, 1, 2).float(), mixup_target(labels, self.classes)
        even = len(labels) // 2 * 2
        with generators() as begin:
            begin(derive(self.seed, "mix", epoch, step))
            images[:even], targets[:even] = mix(images[:even], labels[:even])
        return batch._replace(pixels=images.permute(0, 2, 3, 1), labels=targets)


def _with(batch: Batch, pixels: Callable[[], Pixels]) -> Batch:
    return batch._replace(pixels=torch.from_numpy(pixels()))
