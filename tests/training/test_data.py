import numpy as np
import pytest
import torch

from mosa_deploy.errors import DataError
from tests.support.images import PREPROCESS, random_images
from training.data import check_classes, normalise


def test_normalise_is_the_formula_and_equals_the_service() -> None:
    pixels = random_images(3, 2).pixels
    given = normalise(pixels, PREPROCESS)
    assert given.dtype == torch.float32
    formula = (pixels.double() / 255 - torch.tensor(PREPROCESS.mean).double()) / torch.tensor(PREPROCESS.std).double()
    np.testing.assert_allclose(given.numpy(), formula.permute(0, 3, 1, 2).numpy(), atol=1e-6)
    np.testing.assert_array_max_ulp(given.numpy(), PREPROCESS.normalise(pixels.numpy()), maxulp=1)


def test_task_of_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="has 1 class: classification needs at least two"):
        check_classes(random_images(4, 1), ["oak"], "training")


def test_classes_without_an_image_are_named() -> None:
    images = random_images(4, 2)
    check_classes(images, ["oak", "ash"], "training")
    with pytest.raises(DataError, match=r"^no training image of class elm, fir: add images or remove the class$"):
        check_classes(images, ["oak", "ash", "elm", "fir"], "training")
