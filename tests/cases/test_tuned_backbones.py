"""Tasks that tuned the backbone itself go the whole way: tuned, exported in every precision, evaluated and served."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from export.export import export
from export.options import ExportConfig, FileOptions
from mosa_deploy import Predictor
from mosa_deploy.adapters.restore import restore
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array, probabilities
from mosa_deploy.errors import BundleError
from tests.support.app import changing, put, scores
from tests.support.runs import Few
from tests.support.tasks import TaskMaker, picture
from training import tasks
from training.config import TuneConfig
from training.evaluate import evaluate
from training.options import EvaluateConfig
from training.tune import tune

both = pytest.mark.parametrize("method", BACKBONE_METHODS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, maker: TaskMaker) -> Iterator[Path]:
    """A store with a task by each method, named after it, and with its run; tests must not change it."""
    root = Path(shutil.copytree(maker.root, tmp_path_factory.mktemp("tuned") / "store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, Few.name, Few())
        for method in BACKBONE_METHODS:
            config = TuneConfig(task=Few.name, name=method, method=method, out=root / "runs" / method, device="cpu")
            files = FileOptions(precision="fp32,fp16,int8" if method == "bitfit" else "fp32")
            export(ExportConfig(bundle=tune(config), out=root, files=files))
        yield root


@pytest.fixture(scope="module")
def client(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The service on a copy of the store."""
    with changing(shutil.copytree(root, tmp_path_factory.mktemp("served") / "store"), max_upload=20 << 20) as client:
        yield client


def expected(root: Path, task: str, image: bytes) -> Array:
    """What the tuned torch model says, (1, K)."""
    bundle = Bundle.load(root / "runs" / task)
    inputs = bundle.record.preprocess.normalise(bundle.record.preprocess.read(image)[None])
    with torch.inference_mode():
        return probabilities(restore(bundle)(torch.from_numpy(inputs)).numpy(), bundle.record.temperature)


def served(client: TestClient, root: Path, task: str) -> None:
    """Check that the service answers as the tuned model does, and by a graph of the task's own."""
    answer = client.post("/classify", files={"image": picture(3)}, data={"task": task})
    classes = Bundle.load(root / "runs" / task).record.classes
    assert [scores(answer)[name] for name in classes] == pytest.approx(
        expected(root, task, picture(3))[0].tolist(), abs=1e-5
    )
    assert client.get(f"/v1/tasks/{task}").json()["lane"] == "folded"


@both
def test_the_service_answers_as_the_tuned_model_does(client: TestClient, root: Path, method: str) -> None:
    served(client, root, method)


@both
def test_an_upload_is_folded_whatever_lane_it_asks_for(client: TestClient, root: Path, method: str) -> None:
    assert put(client, method, Archive.of(root / "runs" / method), lane="shared").status_code == 200
    served(client, root, method)


@both
def test_it_answers_without_a_server(root: Path, method: str) -> None:
    predictor = Predictor.open(root / "tasks" / method, threads=1)
    given = predictor.probabilities([picture(5)])
    np.testing.assert_allclose(given, expected(root, method, picture(5)), atol=1e-5)


def test_every_precision_is_written_and_proved(root: Path) -> None:
    links = json.loads((root / "tasks" / "bitfit" / "parity.json").read_text())["links"]
    stages = ["canary", "expectation", "merged", "folded", "folded ONNX"]
    assert [(link["first"], link["second"]) for link in links[:4]] == list(pairwise(stages))
    assert {link["second"] for link in links[4:]} >= {"folded.fp16.onnx", "folded.int8.onnx"}
    assert all(link["first"] == "folded ONNX" for link in links[4:])


@both
def test_bundle_and_graph_are_evaluated_alike(root: Path, method: str) -> None:
    of_run = evaluate(EvaluateConfig(bundle=root / "runs" / method, out=root / "a", device="cpu"))
    of_graph = evaluate(EvaluateConfig(onnx=root / "tasks" / method / "folded.onnx", out=root / "b", device="cpu"))
    assert of_graph == pytest.approx(of_run, abs=1e-4)


@both
def test_no_shared_graph_takes_it(root: Path, method: str) -> None:
    (shared,) = root.glob("backbones/*/shared.onnx")
    with pytest.raises(BundleError, match=rf"^'{method}' has tuned the backbone itself: only the folded lane can"):
        evaluate(EvaluateConfig(onnx=shared, bundle=root / "tasks" / method, out=root / "c", device="cpu"))


def test_biases_are_a_small_bundle_and_a_whole_backbone_is_not(root: Path) -> None:
    full, biases = (
        sum(value.size for value in Bundle.load(root / "runs" / method).tensors.values()) for method in BACKBONE_METHODS
    )
    (plain,) = root.glob("backbones/*/plain.onnx")
    assert biases < full / 50
    assert full > 0.95 * plain.stat().st_size / 4
