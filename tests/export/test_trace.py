from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.trace import node_types, optimised_node_types
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array
from tests.support.runs import BACKBONE


def run(path: Path, images: Array) -> Array:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"images": images})[0])


def images(count: int, size: int) -> Array:
    return np.random.default_rng(count).standard_normal((count, 3, size, size), dtype=np.float32)


def plain(root: Path) -> Path:
    (path,) = root.glob("backbones/*/plain.onnx")
    return path


def shapes(path: Path) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer)


@pytest.mark.parametrize("task", ["digits", "sprites-location"])
def test_a_folded_graph_has_the_plain_one_s_nodes_before_and_after_optimisation(
    store: Path, task: str, tmp_path: Path
) -> None:
    folded = store / "tasks" / task / "folded.onnx"
    assert node_types(folded) == node_types(plain(store))
    assert node_types(folded)["LayerNormalization"] == 2 * 6 + 1
    fused = [optimised_node_types(path, tmp_path / "o.onnx") for path in (folded, plain(store))]
    assert fused[0] == fused[1]
    assert sum(fused[0].values()) < sum(node_types(folded).values())


def test_folding_widens_the_feed_forward_by_the_bottleneck(store: Path) -> None:
    before, after = shapes(plain(store)), shapes(store / "tasks" / "digits" / "folded.onnx")
    assert [before[shape] for shape in ((192, 768), (768,), (768, 192))] == [6, 6, 6]
    assert [after[shape] for shape in ((192, 772), (772,), (772, 192))] == [6, 6, 6]
    assert not [shape for shape in after if 768 in shape]


def test_a_linear_task_keeps_the_backbone_s_widths_and_brings_its_head(store: Path) -> None:
    graph = store / "tasks" / "sprites-location" / "folded.onnx"
    assert shapes(graph)[192, 768] == 6
    assert run(graph, images(2, 32)).shape == (2, 16)


def test_a_graph_answers_as_the_split_model_does_in_float64(parts_run: Path, parts_store: Path) -> None:
    batch = images(4, 160)
    with torch.inference_mode():
        wanted = restore(Bundle.load(parts_run)).double()(torch.from_numpy(batch).double()).numpy()
    given = run(parts_store / "tasks" / "parts" / "folded.onnx", batch)
    assert np.abs(given - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_the_adapters_change_the_logits_by_far_more_than_the_tolerance(parts_run: Path, parts_store: Path) -> None:
    bundle, batch = Bundle.load(parts_run), images(4, 160)
    bare = load_backbone(BACKBONE, Weights("random"), classes=3)
    head = {name: torch.from_numpy(bundle.tensors[f"head.{name}"]) for name in ("weight", "bias")}
    bare.get_classifier().load_state_dict(head)
    with torch.inference_mode():
        without = bare(torch.from_numpy(batch)).numpy()
    given = run(parts_store / "tasks" / "parts" / "folded.onnx", batch)
    assert np.abs(given - without).max() > 100 * 1e-4 * np.abs(without).max()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_an_image_gets_the_same_row_in_a_batch_of_any_size(store: Path, count: int) -> None:
    graph, batch = store / "tasks" / "digits" / "folded.onnx", images(8, 32)
    alone = np.concatenate([run(graph, image[None]) for image in batch[:count]])
    np.testing.assert_allclose(run(graph, batch[:count]), alone, atol=1e-4)
    assert np.ptp(alone, axis=0).max() > 0.1 or count == 1


@pytest.mark.parametrize("name", ["backbones/*/plain.onnx", "tasks/digits/folded.onnx"])
def test_a_graph_is_valid_and_says_what_goes_in_and_out(store: Path, name: str) -> None:
    (path,) = store.glob(name)
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 20
    (given,), (answer,) = model.graph.input, model.graph.output
    assert (given.name, answer.name) == ("images", "logits")
    sizes = given.type.tensor_type.shape.dim
    assert sizes[0].dim_param == answer.type.tensor_type.shape.dim[0].dim_param != ""
    assert [size.dim_value for size in sizes[1:]] == [3, 32, 32]
    assert [size.dim_value for size in answer.type.tensor_type.shape.dim[1:]] == [10]


def test_no_graph_of_a_backbone_holds_a_path_of_the_machine_that_traced_it(store: Path) -> None:
    (folder,) = (store / "backbones").iterdir()
    graphs = list(folder.glob("*.onnx"))
    assert graphs
    assert not [graph.name for graph in graphs if b".py" in graph.read_bytes()]
