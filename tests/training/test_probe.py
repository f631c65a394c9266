import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

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

from mosa_deploy.adapters.probe import Probe
from mosa_deploy.adapters.restore import restore
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import probabilities
from mosa_deploy.bundles.probe_features import Features
from mosa_deploy.errors import ConfigError
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy
from training.config import TuneConfig
from training.data import Images
from training.loop import predict
from training.probe import GRID, fit_probe
from training.recipe import Recipe
from training.tune import tune

TRAIN, HELD_OUT = 60, 30


@torch.no_grad()
def features(model: VisionTransformer, images: Images) -> NDArray[np.float32]:
    inputs = torch.from_numpy(PREPROCESS.normalise(images.pixels.numpy()))
    return np.asarray(model.forward_head(model.forward_features(inputs), pre_logits=True).numpy())


@torch.no_grad()
def wide_features(model: VisionTransformer, images: Images) -> NDArray[np.float32]:
    """The class tokens of both blocks and the mean of the patches, after the norm."""
    inputs = torch.from_numpy(PREPROCESS.normalise(images.pixels.numpy()))
    outputs: list[torch.Tensor] = []
    for block in model.blocks.children():
        block.register_forward_hook(lambda _module, _given, out: outputs.append(model.norm(out)))
    model(inputs)
    return np.concatenate([outputs[0][:, 0], outputs[1][:, 0], outputs[1][:, 1:].mean(1)], axis=1)


def test_head_on_the_features_of_blocks_says_what_scikit_learn_says(toy: Toy) -> None:
    train, held_out = random_images(TRAIN, 3), random_images(HELD_OUT, 3, seed=1)
    probe = Probe(toy(), "blocks", 3)
    rows = fit_probe(probe, train, held_out, PREPROCESS, "cpu")
    best = max(rows, key=lambda row: row["validation_accuracy"])["c"]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=best, max_iter=2000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(wide_features(toy(), train), train.labels.numpy())
    given = softmax(predict(probe, held_out, PREPROCESS, "cpu").numpy(), axis=1)
    np.testing.assert_allclose(given, pipeline.predict_proba(wide_features(toy(), held_out)), atol=2e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_each_of_several_labels_has_a_regression_of_its_own(toy: Toy, count: int) -> None:
    """An image of class k has the labels up to k, and one of class 0 none."""
    sets = [random_images(number, 4, seed) for number, seed in ((TRAIN, 0), (HELD_OUT, 1))]
    train, held_out = (replace(each, labels=(each.labels[:, None] > torch.arange(count)).float()) for each in sets)
    model = toy(num_classes=count)
    rows = fit_probe(model, train, held_out, PREPROCESS, "cpu", select="map")
    best = max(rows, key=lambda row: (row["validation_map"], -row["validation_loss"]))["c"]
    logits = predict(model, held_out, PREPROCESS, "cpu").numpy()
    for k in range(count):
        one = replace(train, labels=train.labels[:, k].long())
        found = reference(toy(), one, best).decision_function(features(toy(), held_out))
        np.testing.assert_allclose(logits[:, k], found, atol=2e-2)


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


PROBES: dict[str, dict[str, Any]] = {
    "blocks": {"method": "linear", "features": "blocks"},
    "attended": {"method": "attentive", "epochs": 2},
}


@pytest.mark.parametrize("features", PROBES)
def test_a_run_leaves_a_bundle_that_answers_its_canary_as_it_did(few: str, tmp_path: Path, features: Features) -> None:
    out = tune(TuneConfig(task=few, device="cpu", out=tmp_path / "run", **PROBES[features]))
    bundle = Bundle.load(out)
    assert bundle.record.features == features
    with torch.no_grad():
        logits = restore(bundle)(torch.from_numpy(bundle.canary.inputs(bundle.record.preprocess)))
    assert bundle.canary.error(probabilities(logits.numpy(), bundle.record.temperature)) < 1e-5
    assert bundle.record.metrics["parameters"] == sum(tensor.size for tensor in bundle.tensors.values())


def test_features_are_an_option_of_the_linear_probe_alone() -> None:
    with pytest.raises(ConfigError, match=r"--features blocks is an option of --method linear: drop it"):
        TuneConfig(task="digits", method="mosa", features="blocks").resolve(Recipe(backbone="toy"))
