"""Graphs of probes answer as the torch model does, alone and all at once in one pass of the shared graph."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.trace import STAND_IN_CLASSES, trace_backbone
from mosa_deploy.adapters.probe import TunedModel
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.probe_features import Features
from mosa_deploy.graphs.adapter_weights import ProbeLayout, adapter_weights
from mosa_deploy.graphs.backbone_graph import PlainGraph
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.graphs.fold import fold_bundle
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.runtimes.shared import SharedRunner, apply_head
from tests.support.graphs import noise
from tests.support.probes import KINDS, WIDTH, make_probe

TASKS: list[tuple[Features, int]] = [("cls", 0), ("cls+mean", 1), ("blocks", 2), ("attended", 3), ("attended", 4)]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    """The traced backbone."""
    name, kwargs = KINDS[kind]
    model = load_backbone(name, Weights("random"), STAND_IN_CLASSES, embed_dim=WIDTH, num_heads=3, **kwargs)
    record = make_probe(kind, "blocks")[0].record
    root = tmp_path_factory.mktemp("backbones") / "b"
    trace_backbone(model, record.backbone.sha256, root, ProbeLayout(record.backbone.topology))
    return root


def images(kind: str) -> Array:
    return noise(3, KINDS[kind][1]["img_size"])


def wanted(model: TunedModel, inputs: Array) -> Array:
    with torch.inference_mode():
        return np.asarray(model.double()(torch.from_numpy(inputs).double()).numpy())


@pytest.mark.parametrize("features", ["cls+mean", "blocks", "attended"])
def test_a_probes_own_graph_answers_as_torch_does(folder: Path, kind: str, features: Features) -> None:
    bundle, model = make_probe(kind, features)
    graph = fold_bundle(PlainGraph.load(folder), bundle)
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    given, expected = session.run(None, {"images": images(kind)})[0], wanted(model, images(kind))
    np.testing.assert_allclose(given, expected, atol=1e-5 * np.abs(expected).max())
    assert [output.shape for output in session.get_outputs()] == [["batch", 4]]


def test_one_pass_of_the_shared_graph_answers_for_every_probe(folder: Path, kind: str) -> None:
    probes = [make_probe(kind, features, seed) for features, seed in TASKS]
    bank = Bank(ProbeLayout(probes[0][0].record.backbone.topology))
    runner = SharedRunner(open_runner(folder / bank.layout.file), bank)
    slots = [bank.write(adapter_weights(bundle)) for bundle, _ in probes]
    rows = runner.run(images(kind), np.zeros(3, dtype=np.int64))
    for (bundle, model), slot in zip(probes, slots, strict=True):
        given = apply_head(rows[:, bank.layout.columns(bundle.record.features, slot)], bundle.head)
        expected = wanted(model, images(kind))
        np.testing.assert_allclose(given, expected, atol=1e-5 * np.abs(expected).max())
