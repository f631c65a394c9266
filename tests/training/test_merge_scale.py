import math

import pytest
import torch
from torch.nn import functional as F

from mosa_deploy.adapters.attach import attach, set_merge_scale, split_layers
from mosa_deploy.adapters.merge import merge
from mosa_deploy.bundles.adapter_config import AdapterConfig
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy, perturb
from training.loop import predict
from training.merge_scale import fit_merge_scale


def test_fitted_merge_scale_is_the_best_of_a_fine_grid(toy: Toy) -> None:
    model = attach(toy(num_classes=3), AdapterConfig(bottleneck=4, experts=4, scale=1.0))
    perturb(model, 1.0)
    images = random_images(60, 3)
    # Labels that the model gives at 0.8 make that the scale to find.
    set_merge_scale(model, 0.8)
    images = type(images)(images.pixels, predict(model, images, PREPROCESS, "cpu").argmax(1), images.examples)

    def loss(scale: float) -> float:
        set_merge_scale(model, scale)
        return float(F.cross_entropy(predict(model, images, PREPROCESS, "cpu"), images.labels))

    grid = [math.exp(x) for x in torch.linspace(-math.log(8), math.log(2), 60).tolist()]
    best = min(grid, key=loss)
    found = fit_merge_scale(model, images, PREPROCESS, "cpu")
    assert found == pytest.approx(best, rel=0.08)
    assert {layer.merge_scale for layer in split_layers(model)} == {found}
    assert loss(found) <= loss(best) + 1e-3
    assert loss(found) < loss(1 / 4)


def test_merged_model_keeps_the_fitted_scale(toy: Toy) -> None:
    model = attach(toy(num_classes=3), AdapterConfig(bottleneck=4, experts=4, scale=1.0))
    perturb(model)
    images = random_images(12, 3)
    fit_merge_scale(model, images, PREPROCESS, "cpu")
    before = predict(model, images, PREPROCESS, "cpu")
    torch.testing.assert_close(predict(merge(model), images, PREPROCESS, "cpu"), before)
