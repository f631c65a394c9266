import hashlib
import math
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from mosa_deploy.backbones import embedded
from mosa_deploy.bundles.decode import Decode
from mosa_deploy.errors import ConfigError, DataError
from training.tasks import TASKS, find
from training.tasks.base import Example, draw_sets, shares, stratified
from training.tasks.digits import Digits
from training.tasks.labels import numbers
from training.tasks.sprites import SHAPES, Sprite, SpritesLocation, SpritesOrientation, ceiling, draw, read, sprite


def ink(factors: Sprite) -> NDArray[np.float64]:
    return np.asarray(draw(factors))[:, :, 0] / 255


def centre_of_mass(image: NDArray[np.float64]) -> tuple[float, float]:
    middles = np.arange(32) + 0.5
    return float(image.sum(0) @ middles / image.sum()), float(image.sum(1) @ middles / image.sum())


def test_unknown_task_offers_the_nearest_names() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^unknown task 'sprites-'; did you mean sprites-labels or sprites-location or sprites-orientation\?$",
    ):
        find("sprites-")


def test_embedded_presets_stay_small() -> None:
    presets = {name: task.recipe for name, task in TASKS.items() if task.recipe.backbone == embedded.NAME}
    assert presets.keys() >= {"digits", "sprites-location"}
    assert all(preset.epochs <= 20 and preset.bottleneck == 16 for preset in presets.values())


def test_digits_are_split_60_20_20_without_overlap() -> None:
    splits = Digits().splits(None, None)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1078, 359, 360]
    names = {example.name for part in (splits.train, splits.validation, splits.test) for example in part}
    assert len(names) == 1797


def test_digits_keep_each_class_in_its_proportion() -> None:
    splits = Digits().splits(None, None)
    whole = Counter(load_digits().target.tolist())
    for part, share in ((splits.train, 0.6), (splits.validation, 0.2), (splits.test, 0.2)):
        counts = Counter(example.label for example in part)
        assert all(abs(counts[label] - share * whole[label]) <= 1 for label in range(10))


def test_digits_pixels_and_labels_are_those_of_scikit_learn() -> None:
    data = load_digits()
    for example in Digits().splits(None, None).validation[:50]:
        index = int(example.name.removeprefix("digits/"))
        pixels = np.asarray(Decode().image(example.read()), dtype=np.float64)
        for channel in range(3):
            np.testing.assert_array_equal(np.round(pixels[:, :, channel] * 16 / 255), data.images[index])
        assert example.label == data.target[index]


@pytest.mark.parametrize("name", ["digits", "sprites-location", "sprites-orientation"])
def test_every_call_splits_alike(name: str) -> None:
    first, second = (find(name).splits(None, None) for _ in range(2))
    for part in ("train", "validation", "test"):
        assert [e[::2] for e in getattr(first, part)] == [e[::2] for e in getattr(second, part)]


def trees(oaks: int, ashes: int) -> list[Example]:
    names = [f"oak/{i}" for i in range(oaks)] + [f"ash/{i}" for i in range(ashes)]
    return [Example(name, bytes, int(name.startswith("ash"))) for name in names]


@pytest.mark.parametrize("ashes", [1, 3])
def test_class_of_too_few_images_is_named_with_the_set_that_lacks_it(ashes: int) -> None:
    said = rf"^class 'ash' has {ashes} images, which leaves none for validation .*: give validation a larger share, or"
    with pytest.raises(DataError, match=said):
        stratified(trees(9, ashes), (0.6, 0.2, 0.2), ["oak", "ash"])


@pytest.mark.parametrize(
    ("percentages", "lacking"), [("90-5-5", "validation"), ("5-90-5", "train"), ("90-8-2", "test")]
)
def test_share_that_leaves_a_class_out_is_refused_whatever_the_set(percentages: str, lacking: str) -> None:
    with pytest.raises(
        DataError, match=rf"^class 'ash' has 6 images, which leaves none for {lacking} \(.* of 100 images"
    ):
        stratified(trees(94, 6), shares(percentages), ["oak", "ash"])


def test_class_that_the_draw_left_one_image_of_is_the_one_that_is_named() -> None:
    names = [f"class{label:02d}" for label in range(50)]
    examples = [Example(f"{name}/{i}", bytes, label) for label, name in enumerate(names) for i in range(3)]
    with pytest.raises(DataError, match=r"^class '\w+' has 3 images, which leaves none for validation ") as caught:
        stratified(examples, (0.6, 0.2, 0.2), names)
    train = draw_sets(examples, {"train": 90, "rest": 60})["train"]
    taken = Counter(names[k] for example in train for k in numbers(example.label))
    assert taken[str(caught.value).split("'")[1]] == 2


@pytest.mark.parametrize("percentages", ["80-10-10", "60-20-20", "34-33-33", "29-61-10", "58-21-21"])
@pytest.mark.parametrize("total", [100, 1797])
def test_percentages_are_kept_and_every_class_is_in_every_set(percentages: str, total: int) -> None:
    a, b, _ = (int(number) for number in percentages.split("-"))
    parts = stratified(trees(total // 2, total - total // 2), shares(percentages))
    assert [len(part) for part in parts[:2]] == [total * a // 100, total * b // 100]
    assert len({example.name for part in parts for example in part}) == total
    for part in parts:
        assert {example.label for example in part} == {0, 1}


@pytest.mark.parametrize(
    "given", ["80-10-11", "100-0-0", "80-20", "80-10-10-0", "0.8-0.1-0.1", "eighty", "-80-10-10", "08-82-10", "80--20"]
)
def test_split_must_be_three_percentages_that_sum_to_100(given: str) -> None:
    with pytest.raises(
        DataError, match=rf"^--split {given}: give three percentages that sum to 100, such as 60-20-20$"
    ):
        shares(given)


def test_sprites_are_800_200_2000_without_overlap() -> None:
    splits = SpritesLocation().splits(None, None)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [800, 200, 2000]
    names = {example.name for part in (splits.train, splits.validation, splits.test) for example in part}
    assert len(names) == 3000


def test_sprites_label_is_half_the_x_position_and_all_16_occur() -> None:
    splits = SpritesLocation().splits(None, None)
    assert len(splits.classes) == 16
    for part in (splits.train, splits.validation, splits.test):
        assert {example.label for example in part} == set(range(16))
        for example in part[:50]:
            index = int(example.name.removeprefix("sprite/"))
            assert example.label == sprite(index).x // 2
            assert example.read() == read(index)


def test_sprites_orientation_has_16_classes_of_two_and_a_half_steps() -> None:
    splits = SpritesOrientation().splits(None, None)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [800, 200, 2000]
    assert len(splits.classes) == 16
    for example in splits.test:
        k = sprite(int(example.name.removeprefix("sprite/"))).orientation
        assert example.label == math.floor(k / 2.5)
    for part in (splits.train, splits.validation, splits.test):
        assert {example.label for example in part} == set(range(16))


@pytest.mark.parametrize(("scale", "x", "y"), [(3, 13, 20), (0, 31, 0)])
def test_best_accuracy_on_orientations_is_what_equal_images_leave_to_guess(scale: int, x: int, y: int) -> None:
    best = 0
    for shape in range(3):
        classes = defaultdict[bytes, list[int]](list)
        for k in range(40):
            classes[draw(Sprite(shape, scale, k, x, y)).tobytes()].append(math.floor(k / 2.5))
        best += sum(max(Counter(alike).values()) for alike in classes.values())
    assert best / 120 == pytest.approx(ceiling(), abs=1e-12)
    assert f"at best {best / 120:.3f} " in SpritesOrientation().splits(None, None).note


def test_sprites_are_the_same_in_another_process() -> None:
    program = (
        "import hashlib; from training.tasks.sprites import read;"
        "print(hashlib.sha256(b''.join(map(read, (2999, 0, 7)))).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.strip() == hashlib.sha256(b"".join(map(read, (2999, 0, 7)))).hexdigest()


@pytest.mark.parametrize("shape", [SHAPES.index("square"), SHAPES.index("ellipse")])
def test_sprite_lies_where_its_factors_say(shape: int) -> None:
    for x, y in ((0, 31), (10, 3), (31, 16)):
        centre = centre_of_mass(ink(Sprite(shape, 3, 7, x, y)))
        expected = [32 * (0.2 + 0.6 * position / 31) for position in (x, y)]
        np.testing.assert_allclose(centre, expected, atol=0.15)


def test_sprite_moves_right_with_x_whatever_its_shape() -> None:
    for shape in range(3):
        centres = [centre_of_mass(ink(Sprite(shape, 2, 5, x, 9)))[0] for x in range(32)]
        assert np.all(np.diff(centres) > 0.3)


def test_sprite_grows_with_its_scale() -> None:
    areas = [ink(Sprite(SHAPES.index("square"), scale, 3, 15, 15)).sum() for scale in range(6)]
    sides = [1.4 * 32 * 0.2 * (0.5 + 0.1 * scale) for scale in range(6)]
    np.testing.assert_allclose(areas, np.square(sides), rtol=0.08)


def test_sprite_turns_with_its_orientation() -> None:
    ellipse = SHAPES.index("ellipse")
    lying, standing = (ink(Sprite(ellipse, 5, orientation, 15, 15)) for orientation in (0, 10))
    assert (lying.sum(0) > 0).sum() > 1.5 * (lying.sum(1) > 0).sum()
    assert (standing.sum(1) > 0).sum() > 1.5 * (standing.sum(0) > 0).sum()


def test_sprite_edges_are_antialiased() -> None:
    levels = np.unique(ink(Sprite(SHAPES.index("heart"), 5, 3, 15, 15)))
    assert levels[0] == 0
    assert levels[-1] == 1
    assert len(levels) > 10
