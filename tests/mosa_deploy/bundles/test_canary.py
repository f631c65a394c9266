import io

import numpy as np
import pytest
from PIL import Image

from mosa_deploy.bundles.bundle import Tensors
from mosa_deploy.bundles.canary import CANARY_PIXELS, FILE_BYTES, SIZE, Canary
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.image_size import size_fault
from mosa_deploy.bundles.preprocess import Array, Preprocess
from mosa_deploy.errors import BundleError


def canary(images: tuple[bytes, ...] = (b"abc", b"", b"defgh")) -> Canary:
    table = np.random.default_rng(0).dirichlet(np.ones(4), len(images))
    return Canary(images, table.astype(np.float32))


def test_images_of_any_length_and_probabilities_come_back() -> None:
    loaded = Canary.from_tensors(canary().to_tensors())
    assert loaded.images == (b"abc", b"", b"defgh")
    np.testing.assert_array_equal(loaded.probabilities, canary().probabilities)


def test_error_is_the_largest_difference_in_either_direction() -> None:
    moved = canary().probabilities.copy()
    moved[1, 2] -= 0.25
    moved[2, 0] += 0.125
    assert canary().error(moved) == pytest.approx(0.25, abs=1e-6)
    assert canary().error(canary().probabilities) == 0.0


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_values_that_are_not_finite_and_other_shapes_count_as_infinite(odd: float) -> None:
    moved = canary().probabilities.copy()
    moved[0, 0] = odd
    assert canary().error(moved) == float("inf")
    assert canary().error(canary().probabilities[:, :1]) == float("inf")
    assert Canary(canary().images, moved).error(canary().probabilities) == float("inf")
    assert Canary(canary().images, moved).error(moved) == float("inf")


@pytest.mark.parametrize("fault", [{"lengths": [3, 0, 4]}, {"lengths": [3, 5]}, {"lengths": []}, {"bytes": b"abc"}])
def test_lengths_that_do_not_add_up_are_refused(fault: dict[str, list[int] | bytes]) -> None:
    tensors: Tensors = canary().to_tensors()
    for name, value in fault.items():
        kind = np.int64 if name == "lengths" else np.uint8
        tensors[f"canary.{name}"] = np.array(list(value), dtype=kind)
    with pytest.raises(BundleError, match="canary is inconsistent: tune the task again"):
        Canary.from_tensors(tensors)


@pytest.mark.parametrize("name", ["bytes", "lengths", "probabilities"])
def test_a_missing_tensor_is_named(name: str) -> None:
    tensors = canary().to_tensors()
    del tensors[f"canary.{name}"]
    with pytest.raises(BundleError, match=rf"the bundle has no canary\.{name}: tune the task again"):
        Canary.from_tensors(tensors)


def means(inputs: Array) -> Array:
    return np.asarray(inputs.mean(axis=(2, 3)))


def test_recording_keeps_what_the_model_says_of_the_preprocessed_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)

    preprocess = Preprocess(size=(8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    recorded = Canary.record([encode(image) for image in pixels], preprocess, means)
    expected = (pixels.mean(axis=(1, 2)) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(recorded.probabilities, expected, rtol=0, atol=1e-6)


def noise(width: int, height: int) -> bytes:
    return encode(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("side", [16, 224, 1024])
def test_a_canary_of_large_files_is_small_whatever_the_input(side: int) -> None:
    preprocess = Preprocess(size=(side, side))
    recorded = Canary.record([noise(900, 600)], preprocess, means)
    (content,) = recorded.images
    assert len(content) <= FILE_BYTES
    assert SIZE * FILE_BYTES <= 2 << 20
    np.testing.assert_array_equal(recorded.probabilities, means(recorded.inputs(preprocess)))


def test_the_middle_of_a_large_file_is_kept_upright_and_larger_than_the_input() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(noise(1000, 450)))) // 8
    pixels[:225] += 200
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    preprocess = Preprocess(size=(16, 32))
    recorded = Canary.record([buffer.getvalue()], preprocess, means)
    with Image.open(io.BytesIO(recorded.images[0])) as image:
        assert image.size == (64, 32)
    whole = preprocess.read(buffer.getvalue()).astype(int)
    assert abs(recorded.pixels(preprocess)[0] - whole).mean() < 5


def test_an_image_that_the_service_would_not_decode_is_replaced_though_its_file_is_small() -> None:
    narrow, preprocess = encode(np.full((2, 4000, 3), 90, dtype=np.uint8)), Preprocess(size=(224, 224))
    assert size_fault((4000, 2), preprocess, CANARY_PIXELS)
    recorded = Canary.record([narrow], preprocess, means)
    with Image.open(io.BytesIO(recorded.images[0])) as image:
        assert size_fault(image.size, preprocess, CANARY_PIXELS) is None
    assert abs(recorded.pixels(preprocess).astype(int) - 90).max() <= 1


def test_a_small_file_is_kept_byte_by_byte() -> None:
    content = noise(200, 300)
    assert Canary.record([content], Preprocess(size=(16, 16)), means).images == (content,)
