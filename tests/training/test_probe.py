import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.models.vision_transformer import VisionTransformer

from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy
from training.data import Images
from training.loop import predict
from training.probe import GRID, fit_probe

TRAIN, HELD_OUT = 60, 30


@torch.no_grad()
def features(model: VisionTransformer, images: Images) -> NDArray[np.float32]:
    inputs = torch.from_numpy(PREPROCESS.normalise(images.pixels.numpy()))
    return np.asarray(model.forward_head(model.forward_features(inputs), pre_logits=True).numpy())


def reference(model: VisionTransformer, train: Images, c: float) -> Pipeline:
    """Scikit-learn alone on the features."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return pipeline.fit(features(model, train), train.labels.numpy())


@pytest.mark.parametrize("classes", [2, 3])
def test_head_says_what_scikit_learn_says_of_the_features(toy: Toy, classes: int) -> None:
    model = toy(num_classes=classes)
    train, held_out = random_images(TRAIN, classes), random_images(HELD_OUT, classes, seed=1)
    rows = fit_probe(model, train, held_out, PREPROCESS, "cpu")
    best = max(rows, key=lambda row: row["validation_accuracy"])["c"]
    expected = reference(toy(num_classes=classes), train, best).predict_proba(features(model, held_out))
    given = softmax(predict(model, held_out, PREPROCESS, "cpu").numpy(), axis=1)
    assert given.shape == (HELD_OUT, classes)
    np.testing.assert_allclose(given, expected, atol=2e-3)


def test_c_is_chosen_on_validation_out_of_the_whole_grid(toy: Toy) -> None:
    model = toy(num_classes=3)
    train, held_out = random_images(TRAIN, 3), random_images(HELD_OUT, 3, seed=1)
    rows = fit_probe(model, train, held_out, PREPROCESS, "cpu")
    assert [row["c"] for row in rows] == list(GRID) == [1e-3, 1e-2, 0.1, 1, 10, 100, 1000]
    for row in rows:
        expected = reference(model, train, row["c"]).score(features(model, held_out), held_out.labels.numpy())
        assert row["validation_accuracy"] == pytest.approx(expected, abs=1.5 / HELD_OUT)
    accuracy = (predict(model, held_out, PREPROCESS, "cpu").argmax(1) == held_out.labels).float().mean()
    accuracies = [row["validation_accuracy"] for row in rows]
    assert float(accuracy) == pytest.approx(max(accuracies))
    assert min(accuracies) < max(accuracies)


def test_probe_leaves_the_backbone_as_it_was(toy: Toy) -> None:
    model = toy(num_classes=3)
    fit_probe(model, random_images(TRAIN, 3), random_images(HELD_OUT, 3, seed=1), PREPROCESS, "cpu")
    plain = toy(num_classes=3).state_dict()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, plain[name])}
    assert changed == {"head.weight", "head.bias"}
