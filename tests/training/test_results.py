import numpy as np
import pytest
import torch

from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.preprocess import Preprocess
from training import results
from training.data import Images
from training.results import canary_images
from training.tasks.base import Example

PREPROCESS = Preprocess(size=(16, 16))


def test_an_image_that_a_service_would_not_decode_is_in_the_canary_as_the_task_sees_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(results, "CANARY_PIXELS", 1000)
    small, large = (encode(np.full((side, side, 3), 90, dtype=np.uint8)) for side in (20, 40))
    examples = [Example("small", lambda: small, 0), Example("large", lambda: large, 0)]
    images = Images(torch.zeros(2, 16, 16, 3, dtype=torch.uint8), torch.tensor([0, 0]), examples)
    first, second = canary_images(images, PREPROCESS)
    assert first == small
    assert second != large
    pixels = Canary((second,), np.empty((0, 0), dtype=np.float32)).pixels(PREPROCESS)
    np.testing.assert_array_equal(pixels[0], PREPROCESS.read(large))
