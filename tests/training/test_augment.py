"""What happens to single images and to batches, and that it follows from named seeds alone."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mosa_deploy.bundles.preprocess import Preprocess
from tests.support.images import PREPROCESS, random_images
from training.augment import Augmentation, Changes, generators, margin, switched_on
from training.data import Batch, Cut, cuts, whole
from training.recipe import Recipe
from training.tune_options import Augment
from training.workers import Workers

NONE = Workers(0)

EVERYTHING: dict[str, Any] = {"augment": "randaug", "erase": 0.5, "mixup": 0.4, "cutmix": 1.0}


def augmentation(seed: int = 0, **settings: Any) -> Augmentation:
    return Augmentation(Recipe("toy", **settings), PREPROCESS, classes=3, seed=seed, device="cpu")


def batches(size: int = 7, order: Tensor | None = None, pixels: int = 19) -> Iterator[Batch]:
    """Batches of 20 noise images with a margin."""
    images = random_images(20, 3)
    large = images.pixels.repeat(1, 2, 2, 1)[:, :pixels, :pixels].contiguous()
    for cut in cuts(torch.arange(20) if order is None else order, size):
        yield Batch(large[cut.rows], images.labels[cut.rows], cut)


def changed(epoch: int = 0, seed: int = 0, workers: Workers = NONE, **settings: Any) -> Tensor:
    made = augmentation(seed, **settings).changed(batches(), epoch, workers)
    return torch.cat([batch.pixels for batch in made])


def test_images_are_read_with_a_margin_of_one_seventh_where_they_are_cropped() -> None:
    preprocess = PREPROCESS.model_copy(update={"size": (224, 98), "crop_pct": 0.9})
    for augment in ("crop", "auto", "randaug"):
        larger = margin(preprocess, augment)
        assert larger is not None
        assert (larger.size, larger.crop_pct) == ((256, 112), 1.0)
    assert margin(preprocess, "flip") is margin(preprocess, "none") is None


def test_nothing_is_done_where_nothing_is_switched_on() -> None:
    given = list(batches())
    assert list(augmentation().changed(iter(given), 0, NONE)) == given
    assert not augmentation().is_on
    assert augmentation().mixed(given[0], epoch=0, step=0) is given[0]


def test_flipped_images_are_mirrored_or_not() -> None:
    given = torch.cat([batch.pixels for batch in batches()])
    found = changed(augment="flip")
    same, mirrored = ((found == each).flatten(1).all(1) for each in (given, given.flip(2)))
    assert (same ^ mirrored).all()
    assert 4 <= same.sum() <= 16


@pytest.mark.parametrize("augment", ["crop", "auto", "randaug"])
def test_cropped_images_have_the_input_size_and_follow_from_seed_and_epoch(augment: Augment) -> None:
    once = changed(augment=augment)
    assert (once.shape, once.dtype) == ((20, *PREPROCESS.size, 3), torch.uint8)
    assert torch.equal(changed(augment=augment), once)
    for other in (changed(augment=augment, epoch=1), changed(augment=augment, seed=1)):
        assert (other != once).flatten(1).any(1).sum() >= 19


def test_policies_change_what_is_cropped() -> None:
    crop, auto, rand = (changed(augment=augment) for augment in ("crop", "auto", "randaug"))
    for policy in (auto, rand):
        assert (policy != crop).flatten(1).any(1).sum() >= 8


def test_an_image_that_an_epoch_draws_twice_is_changed_in_two_ways() -> None:
    order = torch.tensor([3, 3, 5, 3])
    made = augmentation(augment="crop").changed(batches(3, order), 0, NONE)
    first, second, _, third = torch.cat([batch.pixels for batch in made])
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)


def test_an_image_is_changed_alike_in_any_part_of_its_batch() -> None:
    (whole,) = augmentation(**EVERYTHING).changed(batches(20), 2, NONE)
    for rank in range(2):
        mine = (
            Batch(pixels[rank::2], labels[rank::2], Cut(rows[rank::2], places[rank::2], total))
            for pixels, labels, (rows, places, total) in batches(20)
        )
        (part,) = augmentation(**EVERYTHING).changed(mine, 2, NONE)
        assert torch.equal(part.pixels, whole.pixels[rank::2])


def test_erased_rectangles_have_the_mean_colour() -> None:
    given = torch.cat([batch.pixels for batch in batches(pixels=16)])
    made = augmentation(erase=1.0).changed(batches(pixels=16), 0, NONE)
    found = torch.cat([batch.pixels for batch in made])
    erased = (found == torch.tensor([102, 128, 153], dtype=torch.uint8)).all(3)
    assert torch.equal(found[~erased], given[~erased])
    shares = erased.flatten(1).float().mean(1)
    assert (shares > 0.01).all()
    assert (shares < 0.4).all()


def test_the_probability_of_erasing_is_that_of_an_image() -> None:
    made = augmentation(erase=0.5).changed(batches(pixels=16), 0, NONE)
    pairs = zip(made, batches(pixels=16), strict=True)
    touched = torch.cat([(ours.pixels != theirs.pixels).flatten(1).any(1) for ours, theirs in pairs])
    assert 4 <= touched.sum() <= 16


def test_global_generators_are_as_before() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    expected = draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    made = augmentation(**EVERYTHING)
    for step, batch in enumerate(made.changed(batches(), 0, NONE)):
        made.mixed(batch, 0, step)
    assert draws() == expected


def fail_on_purpose() -> None:
    with generators() as begin:
        begin(5)
        raise ValueError


def test_generators_are_put_back_after_an_error() -> None:
    before = random.getstate()
    with pytest.raises(ValueError, match=r"^$"):
        fail_on_purpose()
    assert random.getstate() == before


@pytest.mark.slow
def test_images_are_the_same_whatever_the_number_of_processes() -> None:
    expected = changed(**EVERYTHING)
    for count in (1, 2):
        with Workers(count) as workers:
            assert torch.equal(changed(**EVERYTHING, workers=workers), expected)


def mixed(count: int, **settings: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise images and labels, and what becomes of them in the first step."""
    batch = whole(random_images(count, 3))
    images, targets, _ = augmentation(**settings).mixed(batch, 0, 0)
    return batch.pixels, batch.labels, images, targets


def test_mixup_adds_the_images_and_the_labels_of_a_pair_with_the_same_weights() -> None:
    pixels, labels, images, targets = mixed(6, mixup=0.4)
    one_hot = torch.eye(3)[labels]
    # The first image has class 0 and the last class 2.
    weight = float(targets[0, 0])
    assert 0 < weight < 1
    np.testing.assert_allclose(targets, weight * one_hot + (1 - weight) * one_hot.flip(0), atol=1e-6)
    expected = weight * pixels.float() + (1 - weight) * pixels.float().flip(0)
    np.testing.assert_allclose(images, expected, atol=1e-3)


def test_cutmix_puts_a_rectangle_of_one_image_into_another_and_labels_by_area() -> None:
    pixels, _, images, targets = mixed(6, cutmix=1.0)
    foreign = (images != pixels).any(3)
    assert torch.equal(images[foreign], pixels.flip(0)[foreign].float())
    assert float(targets[0, 2]) == pytest.approx(float(foreign[0].float().mean()), abs=0.02)
    assert 0 < float(targets[0, 2]) < 1


def test_the_last_image_of_an_odd_batch_is_left_as_it_is() -> None:
    pixels, labels, images, targets = mixed(5, mixup=0.4)
    assert torch.equal(images[4], pixels[4].float())
    assert torch.equal(targets[4], torch.eye(3)[labels[4]])
    assert not torch.equal(images[3], pixels[3].float())


def test_a_batch_of_one_image_is_not_mixed() -> None:
    pixels, labels, images, targets = mixed(1, mixup=0.4, cutmix=1.0)
    assert torch.equal(images, pixels.float())
    assert torch.equal(targets, torch.eye(3)[labels])


def test_a_batch_of_which_nothing_can_be_read_stays_empty() -> None:
    batch = next(batches())
    empty = Batch(batch.pixels[:0], batch.labels[:0], Cut(batch.cut.rows[:0], batch.cut.places[:0], 7))
    made = augmentation(**EVERYTHING)
    (found,) = made.changed(iter([empty]), 0, NONE)
    assert len(made.mixed(found, 0, 0).labels) == 0


def test_mixing_follows_from_seed_epoch_and_step() -> None:
    batch = whole(random_images(6, 3))
    drawn = {
        key: augmentation(key[0], mixup=1.0).mixed(batch, *key[1:]).labels
        for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    }
    again = augmentation(mixup=1.0).mixed(batch, 0, 0).labels
    assert torch.equal(drawn[0, 0, 0], again)
    assert len({tuple(targets.flatten().tolist()) for targets in drawn.values()}) == 4


def test_what_is_switched_on_is_named_as_options() -> None:
    recipe = Recipe("toy", augment="crop", mixup=0.2)
    assert switched_on(recipe) == ["--augment crop", "--mixup 0.2"]
    assert switched_on(Recipe("toy")) == []


def test_transforms_fit_every_interpolation() -> None:
    for interpolation in ("bicubic", "bilinear", "lanczos", "nearest"):
        preprocess = Preprocess(size=(8, 12), interpolation=interpolation)
        pixels = np.zeros((1, 10, 14, 3), dtype=np.uint8)
        assert Changes("randaug", 0.0, preprocess)(pixels, [3]).shape == (1, 8, 12, 3)
