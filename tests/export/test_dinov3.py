"""A DINOv3 goes the way of the command line, from a bundle to every file of an export, and answers as float64 torch."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.export import export
from export.options import ExportConfig, FileOptions
from export.trace import node_types, trace_plain
from export.variants import flops, outline
from mosa_deploy import Predictor
from mosa_deploy.adapters.attach import attach, task_state
from mosa_deploy.adapters.probe import plain_backbone
from mosa_deploy.adapters.restore import describe_backbone, restore
from mosa_deploy.adapters.save import save_bundle
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.adapter_config import AdapterConfig, BackboneMethod
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array, probabilities
from mosa_deploy.graphs.adapter_weights import adapter_weights, layout_of
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.graphs.fold import fold_bundle
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.runtimes.shared import SharedRunner
from tests.support import eva
from tests.support.models import perturb
from tests.support.tasks import picture

CLASSES = ("bolt", "nut", "washer")

ADAPTERS: Mapping[str, AdapterConfig | None] = {
    "mosa": AdapterConfig(bottleneck=3, experts=2, scale=0.7),
    "head": None,
    "lora": AdapterConfig(bottleneck=4, experts=1, scale=1.0, style="low-rank", targets=("q", "v", "fc2")),
    "houlsby": AdapterConfig(bottleneck=4, experts=1, scale=1.0, style="houlsby"),
}
BESIDE = ("mosa", "head")
"""Tasks that share a graph."""

OWN: Mapping[str, BackboneMethod] = {"full": "full"}
"""Tasks that tune the backbone itself."""

FOLDED = (*BESIDE, "lora", *OWN)


def make_run(folder: Path, name: str, backbone: str = eva.BIASED, size: int | None = None) -> Bundle:
    """A task on a random DINOv3, with adapters or parameters that are no longer what they began as."""
    model = load_backbone(backbone, Weights("random"), len(CLASSES), size)
    before = describe_backbone(backbone, "random", model)
    randomise(model.get_classifier())
    config, method = ADAPTERS.get(name), OWN.get(name)
    if config is not None:
        attach(model, config)
        perturb(model)
    generator = torch.Generator().manual_seed(0)
    for value in task_state(model, method).values() if method else ():
        value += 0.1 * torch.randn(value.shape, generator=generator)
    more: dict[str, Any] = {"method": method, "tuned_from": before} if method else {}
    images = [picture(seed) for seed in range(4)]
    return save_bundle(
        model, config, folder, task=name, classes=CLASSES, images=images, backbone=backbone, source="random", **more
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundles; the first has images to calibrate on."""
    root = tmp_path_factory.mktemp("runs")
    for name in (*ADAPTERS, *OWN):
        make_run(root / name, name)
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    np.savez_compressed(root / "mosa" / "calibration.npz", images=pixels)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> Path:
    """Their store; the first has files of every precision."""
    store = tmp_path_factory.mktemp("store")
    for name in (*ADAPTERS, *OWN):
        precision = "fp32,fp16,int8" if name == "mosa" else "fp32"
        export(ExportConfig(bundle=runs / name, out=store, files=FileOptions(precision=precision)))
    return store


def backbone(root: Path) -> Path:
    (folder,) = root.glob("backbones/*")
    return folder


def noise(batch: int) -> Array:
    return np.random.default_rng(batch).standard_normal((batch, 3, 32, 32), dtype=np.float32)


@torch.inference_mode()
def reference(model: Transformer, images: Array, features: bool = False) -> Array:
    """Logits, or what the head reads, in float64."""
    model, x = model.double().eval(), torch.from_numpy(images).double()
    return np.asarray(model.forward_head(model.forward_features(x), pre_logits=features).numpy())


def tuned(runs: Path, task: str) -> Transformer:
    return plain_backbone(restore(Bundle.load(runs / task)))


def answers(runs: Path, task: str, images: Sequence[bytes]) -> Array:
    """Probabilities of encoded images, by torch in float64."""
    preprocess = Bundle.load(runs / task).record.preprocess
    inputs = preprocess.normalise(np.stack([preprocess.read(image) for image in images]))
    return probabilities(reference(tuned(runs, task), inputs), 1.0)


@pytest.mark.parametrize("task", [*FOLDED, "houlsby"])
def test_the_graph_answers_as_the_tuned_model_does(runs: Path, root: Path, task: str) -> None:
    wanted = reference(tuned(runs, task), noise(3))
    graph = root / "tasks" / task / ("folded.onnx" if task in FOLDED else "unfolded.onnx")
    np.testing.assert_allclose(OnnxRunner(graph).run(noise(3)), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("task", FOLDED)
def test_tuning_changes_the_logits_and_adds_no_node(runs: Path, root: Path, task: str) -> None:
    bare = load_backbone(eva.BIASED, Weights("random"), len(CLASSES))
    bare.get_classifier().load_state_dict(tuned(runs, task).get_classifier().state_dict())
    folded, without = root / "tasks" / task / "folded.onnx", reference(bare, noise(3))
    changed = np.abs(OnnxRunner(folded).run(noise(3)) - without).max() > 1e-2 * np.abs(without).max()
    assert changed == (task != "head")
    assert node_types(folded) == node_types(backbone(root) / "plain.onnx")


def test_the_angles_of_positions_are_constants_of_the_graph(root: Path) -> None:
    assert not {"Sin", "Cos"} & node_types(backbone(root) / "plain.onnx").keys()


def test_a_mixed_batch_of_the_shared_graph_answers_each_sample_by_its_own_task(runs: Path, root: Path) -> None:
    bundles = [Bundle.load(runs / name) for name in BESIDE]
    bank = Bank(layout_of(bundles[0].record), bottleneck=1)
    slots = [bank.write(adapter_weights(bundle)) for bundle in bundles]
    images, order = noise(5), [1, 0, 1, 0, 0]
    runner = SharedRunner(open_runner(backbone(root) / "shared.onnx"), bank)
    given = runner.run(images, np.array([slots[k] for k in order]))
    wanted = [reference(tuned(runs, name), images, features=True) for name in BESIDE]
    for i, k in enumerate(order):
        np.testing.assert_allclose(given[i], wanted[k][i], rtol=0, atol=1e-5 * np.abs(wanted[k][i]).max())
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2


def test_every_parameter_is_found_by_timms_name_but_for_the_biases_of_q_and_v(root: Path) -> None:
    found = json.loads((backbone(root) / "graph.json").read_text())
    names = set(load_backbone(eva.BIASED, Weights("random"), 10).state_dict())
    apart = {f"blocks.{i}.attn.{part}_bias" for i in range(2) for part in "qv"}
    assert apart < names
    assert set(found["parameters"]) == names - apart | {f"blocks.{i}.attn.qkv.bias" for i in range(2)}


@pytest.mark.parametrize("task", [*FOLDED, "houlsby"])
def test_every_stage_of_an_export_agrees(root: Path, task: str) -> None:
    links = json.loads((root / "tasks" / task / "parity.json").read_text())["links"]
    chain = ["expectation", "merged", "unfolded ONNX"] if task == "houlsby" else ["expectation", "merged", "folded"]
    chain += [] if task == "houlsby" else ["folded ONNX"]
    chain += [] if task == "houlsby" or task in OWN else ["shared ONNX"]
    fp32 = [link for link in links if link["second"] in chain]
    assert [link["second"] for link in fp32] == chain
    assert all(link["max_error"] <= 1e-5 for link in fp32)


def test_the_service_answers_tasks_of_three_graphs_in_one_request(runs: Path, root: Path) -> None:
    # Tests of the export run without the service's packages.
    from tests.support.app import running

    tasks, images = ("mosa", "lora", "full"), [picture(9), picture(10)]
    files = [("image", (f"{i}.png", image)) for i, image in enumerate(images)]
    with running(root) as client:
        results = client.post("/classify", files=files, data={"tasks": ",".join(tasks)}).json()["results"]
    for result, (i, task) in zip(results, [(i, task) for i in range(2) for task in tasks], strict=True):
        given = {each["label"]: each["score"] for each in result["predictions"]}
        assert given == pytest.approx(dict(zip(CLASSES, answers(runs, task, images)[i], strict=True)), abs=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("int8", 0.15)])
def test_fewer_bits_stay_near_the_tuned_model(runs: Path, root: Path, precision: str, tolerance: float) -> None:
    wanted = reference(tuned(runs, "mosa"), noise(3))
    given = OnnxRunner(root / "tasks" / "mosa" / f"folded.{precision}.onnx").run(noise(3))
    assert 0 < np.abs(given - wanted).max() <= tolerance * np.abs(wanted).max()


def test_a_predictor_answers_as_the_tuned_model_does(runs: Path, root: Path) -> None:
    predictor, images = Predictor.open(root / "tasks" / "mosa", threads=1), [picture(9), picture(10)]
    np.testing.assert_allclose(predictor.probabilities(images), answers(runs, "mosa", images), rtol=0, atol=1e-5)


def test_an_adapter_costs_its_two_matrices_for_each_token_as_in_a_vit() -> None:
    model, tokens, r = load_backbone(eva.NAME, Weights("random"), 10), 1 + 4 + 16, 5
    assert flops(outline(model, r)) - flops(model) == 2 * 2 * tokens * 32 * r * 2


@pytest.mark.slow
def test_the_smallest_dinov3_has_684_nodes_plain_and_folded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = make_run(tmp_path / "run", "mosa", "vit_small_patch16_dinov3", 96)
    model = load_backbone("vit_small_patch16_dinov3", Weights("random"), 10, 96)
    plain = trace_plain(model, bundle.record.backbone.sha256)
    folded = fold_bundle(plain, bundle)
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in plain.model.graph.node]
    assert len(folded.graph.node) == 684
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
