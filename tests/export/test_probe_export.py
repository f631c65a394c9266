"""Probes go the whole way: run, export in every precision, parity, and answers without a server."""

import json
from pathlib import Path

import numpy as np
import pytest

from export.export import export
from export.options import ExportConfig, FileOptions
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import read_index
from mosa_deploy.bundles.preprocess import probabilities
from mosa_deploy.bundles.probe_features import Features
from mosa_deploy.client.predictor import Predictor
from mosa_deploy.errors import ConfigError
from tests.support.probes import make_probe_run
from training.subjects import open_graph

FORMATS: dict[Features, tuple[str, ...]] = {"blocks": ("fp16",), "attended": ("fp16", "int8", "int8-tensorrt")}


@pytest.fixture(scope="module", params=["blocks", pytest.param("attended", marks=pytest.mark.slow)])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported probe; tests must not change it."""
    features: Features = request.param
    root = tmp_path_factory.mktemp(features)
    make_probe_run(root / "run", features)
    files = FileOptions(precision="int8,fp16" if features == "attended" else "fp16")
    return export(ExportConfig(bundle=root / "run", out=root / "store", files=files))


def formats(task: Path) -> tuple[str, ...]:
    return FORMATS[Bundle.load(task).record.features]


def backbone(task: Path) -> Path:
    (folder,) = task.parents[1].glob("backbones/*")
    return folder


def test_parity_compares_torch_with_both_lanes_in_every_precision(task: Path) -> None:
    links = json.loads((task / "parity.json").read_text())["links"]
    assert [(link["first"], link["second"]) for link in links] == [
        ("canary", "expectation"),
        ("expectation", "merged"),
        ("merged", "folded ONNX"),
        ("folded ONNX", "shared ONNX"),
        *(("folded ONNX", f"folded.{name}.onnx") for name in formats(task)),
        *(("shared ONNX", f"shared-probes.{name}.onnx") for name in formats(task)),
    ]
    assert max(link["max_error"] for link in links[:4]) < 1e-5


def test_the_backbone_has_the_graph_of_probes_alone(task: Path) -> None:
    files = {"shared-probes.onnx", *(f"shared-probes.{name}.onnx" for name in formats(task))}
    assert read_index(backbone(task)).files.keys() == {"plain.onnx", *files}


def test_it_answers_without_a_server_by_its_own_graph_and_by_the_shared_one(task: Path) -> None:
    canary = Bundle.load(task).canary
    np.testing.assert_allclose(Predictor.open(task).probabilities(canary.images), canary.probabilities, atol=1e-5)
    (task / "folded.onnx").rename(task / "kept")
    try:
        shared = Predictor.open(task)
    finally:
        (task / "kept").rename(task / "folded.onnx")
    np.testing.assert_allclose(shared.probabilities(canary.images), canary.probabilities, atol=1e-5)


def test_its_shared_graph_is_evaluated_by_name_and_another_is_refused(task: Path) -> None:
    bundle = Bundle.load(task)
    answer, _ = open_graph(backbone(task) / "shared-probes.fp16.onnx", task)
    given = probabilities(answer(bundle.canary.inputs(bundle.record.preprocess)), bundle.record.temperature)
    np.testing.assert_allclose(given, bundle.canary.probabilities, atol=1e-2)
    with pytest.raises(ConfigError, match=r"serves tasks of another kind than 'parts': give shared-probes\.onnx"):
        open_graph(backbone(task) / "shared.onnx", task)
