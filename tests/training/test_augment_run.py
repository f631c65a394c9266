"""Augmentation within training: what a step sees, what a resumed run sees, and how images are read for it."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mosa_deploy.adapters.attach import attach, task_state
from mosa_deploy.adapters.loss import pass_losses
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.decode import PILLOW_PIXELS
from mosa_deploy.errors import ConfigError, TrainingError
from tests.support.images import PREPROCESS, random_images, write_jpegs
from tests.support.models import Toy, perturb
from training.augment import margin
from training.cache import CachedSet
from training.config import TuneConfig
from training.data import Images, normalise, whole
from training.dataset import read_dataset
from training.devices import Computing
from training.inspection import Inspection
from training.loop import Trainer
from training.recipe import Recipe, adapter_config, recipe_faults
from training.tasks import TASKS
from training.tasks.folder import Folder
from training.tune import tune
from training.tune_options import AugmentOptions, ExecutionOptions, StreamOptions
from training.workers import Workers

RECIPE = Recipe("toy", bottleneck=4, experts=3, dropout=0.0, epochs=3, batch_size=8, lr=1e-2)

EVERYTHING: dict[str, Any] = {"augment": "randaug", "erase": 0.5, "mixup": 0.4, "cutmix": 1.0}

IMAGES, HELD_OUT = random_images(20, 3), random_images(9, 3, seed=1)

Make = Callable[..., Trainer]


@pytest.fixture
def make(toy: Toy) -> Make:
    """Makes a trainer of the toy with these settings in its recipe."""

    def made(accumulate: int = 1, images: Images = IMAGES, **changes: Any) -> Trainer:
        recipe = dataclasses.replace(RECIPE, **changes)
        torch.manual_seed(0)
        model = attach(toy(num_classes=3), adapter_config(recipe), seed=0)
        perturb(model)
        execution = ExecutionOptions(accumulate=accumulate)
        return Trainer(model, images, HELD_OUT, PREPROCESS, recipe, 0, Computing(execution=execution))

    return made


@pytest.mark.parametrize("settings", [{"augment": "crop"}, {"mixup": 0.4}, EVERYTHING], ids=str)
def test_both_passes_see_the_same_changed_images(make: Make, settings: dict[str, Any]) -> None:
    trainer = make(epochs=1, batch_size=20, **settings)
    seen: list[Tensor] = []
    trainer.model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    trainer.run_epoch(0)
    first, second = seen[0].chunk(2)
    assert torch.equal(first, second)
    given = normalise(IMAGES.pixels, PREPROCESS)
    assert not any((image == given).flatten(1).all(1).any() for image in first)


def test_a_resumed_run_equals_an_unbroken_one(make: Make, tmp_path: Path) -> None:
    unbroken, broken, resumed = (make(**EVERYTHING, balance="sampler") for _ in range(3))
    unbroken.fit(lambda trainer: None)
    broken.select(broken.run_epoch(0) | broken.validate())
    broken.save(tmp_path / "checkpoint.pt")
    for seed in (random.seed, np.random.seed):  # Another process has other generators.
        seed(9)
    resumed.load(tmp_path / "checkpoint.pt")
    resumed.fit(lambda trainer: None)
    states = task_state(unbroken.model), task_state(resumed.model)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    losses = [[row["cross_entropy"] for row in trainer.state.history] for trainer in (unbroken, resumed)]
    assert losses[0] == losses[1]


def test_mixed_labels_in_parts_and_weighed_by_class_give_the_gradients_of_the_whole(make: Make) -> None:
    found = []
    for accumulate in (1, 3):
        trainer = make(
            accumulate, dataclasses.replace(IMAGES, labels=torch.arange(20) % 5 % 3), balance="loss", mixup=1.0
        )
        trainer.model.train()
        losses, _ = trainer.step(trainer.augmentation.mixed(whole(trainer.train), 0, 0))
        gradients = [each.grad for each in trainer.model.parameters() if each.grad is not None]
        found.append((losses, *gradients))
    for once, in_parts in zip(*found, strict=True):
        torch.testing.assert_close(in_parts, once, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 1.0, 3.0])], ids=["equal", "weighed"])
def test_labels_as_probabilities_mean_what_labels_mean(weight: Tensor | None) -> None:
    logits, labels = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0, 2])
    hard, soft = (pass_losses(logits, each, 2, weight) for each in (labels, torch.eye(3)[labels]))
    torch.testing.assert_close(soft, hard)


def test_a_mixed_image_weighs_as_much_as_its_classes() -> None:
    weight, logits = torch.tensor([1.0, 4.0]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    targets = torch.tensor([[0.75, 0.25], [0.0, 1.0]])
    negative = -logits.log_softmax(1)
    sums = (negative * targets * weight).sum() / (0.75 + 0.25 * 4 + 4)
    torch.testing.assert_close(pass_losses(logits, targets, 1, weight)[0], sums)


def test_frozen_blocks_are_computed_in_every_step(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make(adapt_blocks=1, augment="flip", epochs=2)
    inputs: list[int] = []
    trainer.model.get_submodule("blocks.0").register_forward_hook(lambda _, given, __: inputs.append(len(given[0])))
    trainer.fit(lambda trainer: None)
    # The frozen block sees each image once in a step, whatever the number of passes, and validation in one batch.
    assert inputs == [8, 8, 4, 9] * 2
    assert capsys.readouterr().out == (
        "the tokens before the first adapter are computed anew in every step, because the images are augmented\n"
    )


def test_a_loss_of_nan_names_what_is_on_and_the_way_out(make: Make) -> None:
    trainer = make(lr=1e30, mixup=0.2, augment="crop")
    on = "--augment crop, --mixup 0.2"
    with pytest.raises(TrainingError, match=rf"step \d, with {on}: lower --lr \(now 1e\+30\) or leave out {on}; the"):
        trainer.fit(lambda trainer: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in two sets, one of them in both with the same pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("train", "validation"):
        write_jpegs(folder / name, {"ash": 4, "oak": 4}, size=40)
    (folder / "validation/oak/oak_1.jpg").unlink()
    Image.open(folder / "train/oak/oak_2.jpg").save(folder / "validation/oak/oak_1.png")
    return folder


def test_training_images_alone_have_a_margin_and_duplicates_are_found_as_without(folder: Path, tmp_path: Path) -> None:
    found = {}
    for augment in ("none", "flip", "crop"):
        config = TuneConfig("folder", data_dir=folder, augmentation=AugmentOptions(augment=augment))
        with Workers(0) as workers:
            data = read_dataset(Folder().splits(folder, None), PREPROCESS, config, tmp_path, workers).settled()
        found[augment] = data
    assert torch.equal(found["flip"].train.take(range(8)), found["none"].train.take(range(8)))
    assert found["crop"].train.take([0]).shape == (1, 19, 19, 3)
    for data in found.values():
        assert torch.equal(data.validation.take(range(8)), found["none"].validation.take(range(8)))
        assert list(data.remarks) == list(found["none"].remarks)
    assert any("1 the same pixels" in remark for remark in found["crop"].remarks)


def test_the_cache_tells_images_with_a_margin_apart(folder: Path, tmp_path: Path) -> None:
    examples = Folder().splits(folder, None).train
    sets = [
        CachedSet.of(tmp_path, examples, Inspection(PREPROCESS, PILLOW_PIXELS, True, larger))
        for larger in (None, margin(PREPROCESS, "crop"))
    ]
    assert sets[0].folder != sets[1].folder
    assert [each.size for each in sets] == [(16, 16), (19, 19)]


def test_a_streamed_run_equals_one_in_memory_and_keeps_calibration_images_of_the_input_size(
    few: str, tmp_path: Path
) -> None:
    augmentation = AugmentOptions(**EVERYTHING)
    config = TuneConfig(few, out=tmp_path / "memory", device="cpu", epochs=1, augmentation=augmentation)
    streaming = StreamOptions(cache=tmp_path / "cache", workers=1)
    streamed = dataclasses.replace(config, out=tmp_path / "streamed", streaming=streaming)
    digests = {Bundle.load(tune(each)).digest for each in (config, streamed)}
    assert len(digests) == 1
    with np.load(tmp_path / "memory" / "calibration.npz") as arrays:
        assert arrays["images"].shape == (36, 32, 32, 3)


@pytest.mark.parametrize("method", ["linear", "attentive", "auto"])
def test_methods_that_see_images_as_they_are_take_no_augmentation(method: str) -> None:
    options = AugmentOptions(augment="crop", mixup=0.2, cutmix=0.0)
    config = TuneConfig("digits", method=method, augmentation=options)
    with pytest.raises(
        ConfigError, match=rf"^--augment crop, --mixup 0.2: --method {method} sees images as they are, so drop it$"
    ):
        config.resolve(RECIPE)


@pytest.mark.parametrize("method", ["linear", "attentive", "auto"])
def test_these_methods_leave_out_what_a_preset_augments(method: str) -> None:
    recipe = TuneConfig("digits", method=method).resolve(dataclasses.replace(RECIPE, **EVERYTHING))
    assert (recipe.augment, recipe.erase, recipe.mixup, recipe.cutmix) == ("none", 0, 0, 0)


def test_recipes_of_the_paper_have_no_augmentation() -> None:
    recipe = TuneConfig("digits", recipe="paper").resolve(dataclasses.replace(RECIPE, **EVERYTHING))
    assert (recipe.augment, recipe.mixup) == ("none", 0)


def test_an_unknown_augmentation_is_told_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"^unknown augmentation 'randaugment'; did you mean randaug\?$"):
        AugmentOptions(augment="randaugment")


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"erase": 1.5}, "--erase 1.5: 0 to 1"),
        ({"erase": float("nan")}, "--erase nan: 0 to 1"),
        ({"mixup": -0.1}, "--mixup -0.1: at least 0"),
        ({"cutmix": float("inf")}, "--cutmix inf: at least 0"),
        (
            {"mixup": 0.2, "batch_size": 1},
            "--batch-size 1: --mixup and --cutmix need 2 images or more",
        ),
    ],
)
def test_settings_out_of_range_are_told(settings: dict[str, Any], fault: str) -> None:
    assert recipe_faults(dataclasses.replace(RECIPE, **settings)) == [fault]


@pytest.mark.parametrize("name", ["digits", "sprites-location", "sprites-orientation"])
def test_tasks_whose_classes_change_with_a_flip_are_not_augmented(name: str) -> None:
    recipe = TASKS[name].recipe
    assert (recipe.augment, recipe.erase, recipe.mixup, recipe.cutmix) == ("none", 0, 0, 0)
