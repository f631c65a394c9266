import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy import Predictor
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import load_backbone
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array, probabilities
from mosa_deploy.errors import BundleError, DataError, ParityError, StoreError
from tests.support.tasks import picture


@pytest.fixture(scope="module")
def predictor(store: Path) -> Predictor:
    """The digits of the store; tests must not change it."""
    return Predictor.open(store / "tasks" / "digits", threads=1)


@pytest.fixture
def task(store: Path, tmp_path: Path) -> Path:
    """The folder of digits, to be damaged."""
    return Path(shutil.copytree(store / "tasks" / "digits", tmp_path / "digits"))


def test_it_answers_as_the_tuned_model_does(predictor: Predictor, store: Path) -> None:
    bundle = Bundle.load(store / "tasks" / "digits")
    preprocess, images = bundle.record.preprocess, [picture(seed) for seed in range(3)]
    inputs = preprocess.normalise(np.stack([preprocess.read(image) for image in images]))
    with torch.inference_mode():
        logits = restore(bundle)(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(
        predictor.probabilities(images), probabilities(logits, bundle.record.temperature), atol=1e-5
    )


def test_an_answer_names_the_likeliest_classes_and_the_bundle(predictor: Predictor) -> None:
    answer = predictor.classify(picture(1), top_k=3)
    expected = predictor.probabilities([picture(1)])[0]
    assert [each.label for each in answer.predictions] == [str(k) for k in np.argsort(-expected)[:3]]
    assert answer.predictions[0].score == pytest.approx(float(expected.max()))
    assert (answer.task, answer.bundle) == ("digits", predictor.bundle.digest)


def test_paths_may_be_text(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(picture(1))
    assert predictor.classify(str(tmp_path / "one.png")).label == predictor.classify(picture(1)).label


def test_many_images_are_answered_in_their_order(predictor: Predictor) -> None:
    images = [picture(seed) for seed in range(5)]
    answers = list(predictor.classify_many(iter(images), batch=2))
    assert [answer.label for answer in answers] == [predictor.classify(image).label for image in images]


def test_an_unreadable_file_is_named(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.jpg: not a readable image"):
        predictor.classify(tmp_path / "bad.jpg")


def test_a_missing_file_is_named_once(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^\S+none\.jpg: No such file or directory$"):
        predictor.classify(tmp_path / "none.jpg")


def test_a_run_is_refused_with_the_command_that_exports_it(digits_run: Path) -> None:
    with pytest.raises(StoreError, match=rf"holds no graph.*`mosa export --bundle {digits_run} --out artifacts`"):
        Predictor.open(digits_run)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"adapter\.json: No such file"):
        Predictor.open(tmp_path)


def test_a_task_without_a_graph_of_its_own_runs_through_the_shared_one(
    predictor: Predictor, store: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store")) / "tasks" / "digits"
    (copy / "folded.onnx").unlink()
    images = [picture(seed) for seed in range(3)]
    np.testing.assert_allclose(Predictor.open(copy).probabilities(images), predictor.probabilities(images), atol=1e-5)


def test_a_task_whose_backbone_is_missing_says_so(task: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(task, tmp_path / "store" / "tasks" / "digits"))
    (alone / "folded.onnx").unlink()
    with pytest.raises(StoreError, match=r"digits needs its backbone, but .*/backbones/vit_tiny.* is missing: copy it"):
        Predictor.open(alone)


def test_an_altered_graph_is_refused(task: Path) -> None:
    with (task / "folded.onnx").open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\0")
    with pytest.raises(StoreError, match=r"folded\.onnx is not the graph that was proved with this bundle"):
        Predictor.open(task)


def test_a_graph_without_its_proof_is_refused(task: Path) -> None:
    (task / "parity.json").unlink()
    with pytest.raises(StoreError, match=r"parity\.json is missing or damaged: export the task again$"):
        Predictor.open(task)


def test_a_graph_that_misses_its_canary_is_refused(task: Path) -> None:
    bundle = Bundle.load(task)
    changed = Bundle(bundle.record.model_copy(update={"temperature": 9.0}), bundle.tensors, bundle.canary).save(task)
    report = json.loads((task / "parity.json").read_text())
    (task / "parity.json").write_text(json.dumps(report | {"bundle": changed.digest}))
    with pytest.raises(ParityError, match="misses its canary's probabilities by"):
        Predictor.open(task)


def features_of(model: VisionTransformer, inputs: Array) -> Array:
    """What the head of a model reads."""
    with torch.inference_mode():
        return model.forward_head(model.forward_features(torch.from_numpy(inputs)), pre_logits=True).numpy()


def test_features_are_the_tuned_model_s_and_the_plain_backbone_s(predictor: Predictor, store: Path) -> None:
    bundle, images = Bundle.load(store / "tasks" / "digits"), [picture(seed) for seed in range(3)]
    preprocess = bundle.record.preprocess
    inputs = preprocess.normalise(np.stack([preprocess.read(image) for image in images]))
    tuned, plain = restore(bundle), load_backbone(bundle.record.backbone.name)
    assert isinstance(tuned, VisionTransformer)
    assert isinstance(plain, VisionTransformer)
    found = np.stack(list(predictor.embed_many(images, batch=2)))
    np.testing.assert_allclose(found, features_of(tuned, inputs), atol=1e-4)
    np.testing.assert_allclose(predictor.embed(images[1], plain=True), features_of(plain, inputs)[1], atol=1e-4)
    assert np.linalg.norm(predictor.embed(images[1], normalise=True)) == pytest.approx(1)


def test_features_need_the_backbone_s_shared_graph(task: Path) -> None:
    predictor = Predictor.open(task, threads=1)
    with pytest.raises(StoreError, match=r"is in no store, where its backbone's shared graph would be"):
        predictor.embed(picture())
