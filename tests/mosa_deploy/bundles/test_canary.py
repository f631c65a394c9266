import numpy as np
import pytest

from mosa_deploy.bundles.bundle import Tensors
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.decode import encode
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


def test_recording_keeps_what_the_model_says_of_the_preprocessed_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)

    def means(inputs: Array) -> Array:
        return np.asarray(inputs.mean(axis=(2, 3)))

    preprocess = Preprocess(size=(8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    recorded = Canary.record([encode(image) for image in pixels], preprocess, means)
    expected = (pixels.mean(axis=(1, 2)) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(recorded.probabilities, expected, rtol=0, atol=1e-6)
