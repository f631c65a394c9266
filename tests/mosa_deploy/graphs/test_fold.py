"""Folding with numpy: the families' graphs against float64 torch, and what a graph on disk must be."""

import copy
import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from export.trace import node_types, trace_plain
from mosa_deploy.adapters.attach import freeze, task_state
from mosa_deploy.backbones.foldable import Transformer, image_size
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, TARGET_SLICES, AdapterConfig, Method
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.store_layout import PLAIN
from mosa_deploy.errors import BundleError, StoreError
from mosa_deploy.graphs.backbone_graph import PlainGraph, save_graphs
from mosa_deploy.graphs.fold import fold_bundle, fold_parameters, gather_windows
from tests.support.graphs import SMALL, make_task, noise

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {"img_size": 32}),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
    ("vit_base_patch16_clip_quickgelu_224", {"img_size": 32}),
    ("vit_base_patch16_siglip_224", {"img_size": 32}),
    ("deit3_small_patch16_224", {"img_size": 48}),
    ("vit_tiny_patch16_224", {"img_size": 32, "class_token": False, "global_pool": "avg"}),
]
TUNED: list[tuple[str, dict[str, Any]]] = [
    ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
    ("vit_tiny_patch16_224", {"img_size": 32, "qkv_bias": False}),
    ("vit_tiny_patch16_224", {"img_size": 32, "class_token": False, "global_pool": "avg"}),
]
ADAPTER = AdapterConfig(bottleneck=5, experts=3, share="none", scale=0.7)
LOW_RANK = [
    AdapterConfig(bottleneck=3, experts=3, scale=0.7, style="low-rank", targets=("q", "v")),
    AdapterConfig(bottleneck=2, experts=2, share="none", style="low-rank", targets=("fc2", "k", "proj", "fc1")),
    AdapterConfig(bottleneck=4, experts=1, share="up", scale=0.5, style="low-rank", targets=("qkv", "q")),
]


@cache
def traced_once(name: str, sha256: str, **kwargs: Any) -> PlainGraph:
    """The graph of a random backbone, which tasks of every kind are folded into; no fold changes it."""
    return trace_plain(load_backbone(name, Weights("random"), 10, **SMALL, **kwargs), sha256)


def make(name: str, adapter: AdapterConfig | None, **kwargs: Any) -> tuple[PlainGraph, Bundle, Transformer]:
    """The traced backbone and a task on it."""
    bundle, model = make_task(name, adapter, **kwargs)
    return traced_once(name, bundle.record.backbone.sha256, **kwargs), bundle, model


def answers(graph: onnx.ModelProto, images: Array) -> Array:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


@pytest.fixture(scope="module")
def tiny() -> tuple[PlainGraph, Bundle, Transformer]:
    return make("vit_tiny_patch16_224", ADAPTER, img_size=32)


@pytest.mark.parametrize(("name", "kwargs"), FAMILIES, ids=[f"{name}-{len(kwargs)}" for name, kwargs in FAMILIES])
def test_a_graph_folded_with_numpy_is_the_split_model_in_float64(name: str, kwargs: dict[str, Any]) -> None:
    graph, bundle, model = make(name, ADAPTER, **kwargs)
    images = noise(side=kwargs["img_size"])
    folded = fold_bundle(graph, bundle)
    onnx.checker.check_model(folded, full_check=True)
    with torch.inference_mode():
        wanted = model.double()(torch.from_numpy(images).double()).numpy()
    given = answers(folded, images)
    assert np.abs(given - wanted).max() <= 1e-5 * np.abs(wanted).max()
    changed = fold_parameters(graph, bundle)
    plain = graph.replaced({name: changed[name] for name in ("head.weight", "head.bias")})
    assert np.abs(answers(plain, images) - wanted).max() > 1e-2 * np.abs(wanted).max()
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in graph.model.graph.node]


def test_a_task_with_adapters_in_its_last_blocks_widens_these_alone() -> None:
    adapter = dataclasses.replace(ADAPTER, blocks=2)
    graph, bundle, model = make("vit_tiny_patch16_224", adapter, img_size=32)
    images = noise(side=32)
    with torch.inference_mode():
        wanted = model.double()(torch.from_numpy(images).double()).numpy()
    folded = fold_bundle(graph, bundle)
    assert np.abs(answers(folded, images) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    wide = {name.split(".mlp")[0] for name in fold_parameters(graph, bundle) if name.endswith("mlp.fc1.weight")}
    assert wide == set(list(bundle.record.backbone.topology.blocks)[-2:])


@pytest.mark.parametrize("adapter", LOW_RANK, ids=["q-v", "fc2-k-proj-fc1", "qkv-q"])
def test_a_low_rank_task_folded_with_numpy_keeps_every_shape_and_is_the_split_model_in_float64(
    adapter: AdapterConfig,
) -> None:
    graph, bundle, model = make("vit_small_patch14_reg4_dinov2", adapter, img_size=28)
    images, folded = noise(), fold_bundle(graph, bundle)
    with torch.inference_mode():
        wanted = model.double()(torch.from_numpy(images).double()).numpy()
    assert np.abs(answers(folded, images) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    changed = fold_parameters(graph, bundle)
    layers = {TARGET_SLICES[target].module for target in adapter.targets}
    assert changed.keys() - {"head.weight", "head.bias"} == {
        f"blocks.{i}.{name}.weight" for i in (0, 1) for name in layers
    }
    assert all(changed[name].shape == graph.parameter(name).shape for name in changed if name.startswith("blocks"))
    plain = graph.replaced({name: changed[name] for name in ("head.weight", "head.bias")})
    assert np.abs(answers(plain, images) - wanted).max() > 1e-2 * np.abs(wanted).max()


SAME_SHAPES: dict[str, AdapterConfig] = {
    "ssf": AdapterConfig(style="ssf", scale=1.0),
    "groups": AdapterConfig(bottleneck=4, experts=1, style="repadapter", scale=0.7, groups=2),
    "experts": AdapterConfig(bottleneck=3, experts=3, share="none", style="repadapter", scale=0.7, blocks=1),
}
WITHOUT_BIASES: tuple[str, dict[str, Any]] = (
    "vit_base_patch16_clip_quickgelu_224",
    {"img_size": 32, "qkv_bias": False},
)
"""Neither its patch embedding nor qkv has a bias."""


@pytest.mark.parametrize("backbone", [FAMILIES[1], WITHOUT_BIASES], ids=["LayerScale", "no biases"])
@pytest.mark.parametrize("style", SAME_SHAPES)
def test_ssf_and_repadapter_folded_with_numpy_keep_every_shape_and_are_the_split_model_in_float64(
    style: str, backbone: tuple[str, dict[str, Any]]
) -> None:
    name, kwargs = backbone
    graph, bundle, model = make(name, SAME_SHAPES[style], **kwargs)
    images, folded = noise(side=kwargs["img_size"]), fold_bundle(graph, bundle)
    with torch.inference_mode():
        wanted = model.double()(torch.from_numpy(images).double()).numpy()
    assert np.abs(answers(folded, images) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    changed = fold_parameters(graph, bundle)
    head = ("head.weight", "head.bias")
    assert all(changed[own].shape == graph.parameter(own).shape for own in changed if own not in head)
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in graph.model.graph.node]
    plain = graph.replaced({own: changed[own] for own in head})
    assert np.abs(answers(plain, images) - wanted).max() > 1e-2 * np.abs(wanted).max()


def test_what_ssf_adds_to_an_operation_without_a_bias_is_refused() -> None:
    name, kwargs = WITHOUT_BIASES
    graph, bundle, _ = make(name, SAME_SHAPES["ssf"], **kwargs)
    shift = {"patch_embed.proj.adapter.shift": np.ones(24, np.float32)}
    with pytest.raises(BundleError, match=r"^patch_embed\.proj has no bias, so it cannot take in what the task adds"):
        fold_bundle(graph, Bundle(bundle.record, bundle.tensors | shift, bundle.canary))


Made = tuple[PlainGraph, Bundle, Transformer]


@pytest.fixture(scope="module", params=TUNED, ids=["registers and LayerScale", "no bias of qkv", "fc_norm"])
def before(request: pytest.FixtureRequest) -> Made:
    """A traced backbone and a linear task on it."""
    name, kwargs = request.param
    return make(name, None, **kwargs)


def tuned_itself(method: Method, before: Made) -> tuple[Bundle, Transformer]:
    """A task that tuned the backbone itself."""
    bundle, model = before[1], copy.deepcopy(before[2]).float()
    freeze(model, method)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    tensors = {key: value.detach().numpy().copy() for key, value in task_state(model, method).items()}
    return Bundle(bundle.record.model_copy(update={"method": method}), tensors, bundle.canary), model


@pytest.mark.parametrize("method", BACKBONE_METHODS)
def test_what_was_tuned_of_the_backbone_takes_the_place_of_what_was_before(before: Made, method: Method) -> None:
    graph, (bundle, model) = before[0], tuned_itself(method, before)
    images, folded, changed = (
        noise(side=image_size(model)[0]),
        fold_bundle(graph, bundle),
        fold_parameters(graph, bundle),
    )
    with torch.inference_mode():
        wanted = model.double()(torch.from_numpy(images).double()).numpy()
    given = answers(folded, images)
    assert np.abs(given - wanted).max() <= 1e-5 * np.abs(wanted).max()
    head_alone = graph.replaced({name: changed[name] for name in ("head.weight", "head.bias")})
    assert np.abs(answers(head_alone, images) - wanted).max() > 1e-2 * np.abs(wanted).max()
    assert [node.op_type for node in folded.graph.node] == [node.op_type for node in graph.model.graph.node]
    biases = {name for name in graph.index.parameters if name.endswith(".bias")}
    assert changed.keys() == (graph.index.parameters.keys() if method == "full" else biases | {"head.weight"})


def test_biases_that_are_missing_or_of_another_backbone_are_refused(before: Made) -> None:
    bundle, _ = tuned_itself("bitfit", before)
    tensors = {name: value for name, value in bundle.tensors.items() if name != "blocks.0.norm1.bias"}
    tensors["blocks.2.attn.qkv.bias"] = np.zeros(72, np.float32)
    expected = (
        r"^the tuned parameters do not fit .*: missing blocks\.0\.norm1\.bias; unexpected blocks\.2\.attn\.qkv\.bias$"
    )
    with pytest.raises(BundleError, match=expected):
        fold_bundle(before[0], Bundle(bundle.record, tensors, bundle.canary))


def test_a_fully_tuned_backbone_of_another_shape_is_refused_with_every_fault(before: Made) -> None:
    bundle, _ = tuned_itself("full", before)
    tensors = {name: value for name, value in bundle.tensors.items() if name != "blocks.1.norm2.bias"}
    tensors["blocks.0.mlp.fc1.bias"] = np.zeros(7, np.float32)
    expected = r"blocks\.0\.mlp\.fc1\.bias is \(7,\), not \(96,\); missing blocks\.1\.norm2\.bias$"
    with pytest.raises(BundleError, match=expected):
        fold_bundle(before[0], Bundle(bundle.record, tensors, bundle.canary))


def test_a_window_that_is_not_square_is_refused() -> None:
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    with pytest.raises(BundleError, match=rf"^{name} is of a window that is not square: tune on square images$"):
        gather_windows({name: np.zeros((21, 2), np.float32)})


def test_traced_graph_answers_as_its_model_and_names_every_parameter(tmp_path: Path) -> None:
    model = load_backbone("test_vit2", Weights("random"), 10)
    graph = trace_plain(model, "0" * 64)
    images = noise(side=160)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(answers(graph.model, images), wanted, atol=1e-4 * np.abs(wanted).max())
    state = model.state_dict()
    assert graph.index.parameters.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(graph.parameter(name), state[name].numpy())
    nodes = {node.name: node for node in graph.model.graph.node}
    assert all(nodes[place.node].input[place.input] == name for name, place in graph.index.parameters.items())


def test_equal_tensors_of_a_backbone_are_kept_apart() -> None:
    model = load_backbone("vit_tiny_patch16_224", Weights("random"), 10, img_size=32, **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    graph = trace_plain(model, "0" * 64)
    assert graph.index.parameters.keys() == model.state_dict().keys()
    changed = graph.replaced({"blocks.0.norm2.bias": np.zeros(24, np.float32)})
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    assert (values["blocks.1.norm2.bias"] == 0.5).all()
    assert (values["blocks.0.norm2.bias"] == 0).all()


def test_folding_leaves_the_plain_graph_as_it_is(tiny: tuple[PlainGraph, Bundle, Transformer]) -> None:
    graph, bundle, _ = tiny
    before = graph.model.SerializeToString(deterministic=True)
    fold_bundle(graph, bundle)
    assert graph.model.SerializeToString(deterministic=True) == before


def test_shapes_between_the_nodes_are_those_of_the_folded_widths(
    tiny: tuple[PlainGraph, Bundle, Transformer],
) -> None:
    graph, bundle, _ = tiny
    folded = fold_bundle(graph, bundle).graph
    widths = {info.type.tensor_type.shape.dim[-1].dim_value for info in folded.value_info}
    assert 96 + 5 in widths
    assert 96 not in widths
    assert [dim.dim_value for dim in folded.output[0].type.tensor_type.shape.dim][-1] == 4


def test_a_linear_task_changes_the_head_alone() -> None:
    graph, bundle, model = make("vit_tiny_patch16_224", None, img_size=32)
    assert fold_parameters(graph, bundle).keys() == {"head.weight", "head.bias"}
    with torch.inference_mode():
        wanted = model(torch.from_numpy(noise(side=32))).numpy()
    np.testing.assert_allclose(
        answers(fold_bundle(graph, bundle), noise(side=32)), wanted, atol=1e-5 * np.abs(wanted).max()
    )


def test_a_merge_scale_is_folded_too(tiny: tuple[PlainGraph, Bundle, Transformer]) -> None:
    graph, bundle, _ = tiny
    adapter = dataclasses.replace(ADAPTER, merge_scale=1 / 3)
    alike = Bundle(bundle.record.model_copy(update={"adapter": adapter}), bundle.tensors, bundle.canary)
    wider = dataclasses.replace(ADAPTER, merge_scale=0.9)
    other = Bundle(bundle.record.model_copy(update={"adapter": wider}), bundle.tensors, bundle.canary)
    one, same, more = (fold_parameters(graph, b)["blocks.1.mlp.fc2.weight"][:, 96:] for b in (bundle, alike, other))
    np.testing.assert_allclose(same, one, rtol=1e-6)
    np.testing.assert_allclose(more, 2.7 * one, rtol=1e-5)


def test_a_task_of_another_backbone_is_refused(tiny: tuple[PlainGraph, Bundle, Transformer]) -> None:
    graph, bundle, _ = tiny
    other = bundle.record.backbone.model_copy(update={"sha256": "f" * 64})
    stranger = Bundle(bundle.record.model_copy(update={"backbone": other}), bundle.tensors, bundle.canary)
    with pytest.raises(BundleError, match=r"^'parts' was tuned on vit_tiny_patch16_224-ffffffff, but the graph's "):
        fold_bundle(graph, stranger)


def test_a_saved_graph_loads_as_it_was(tiny: tuple[PlainGraph, Bundle, Transformer], tmp_path: Path) -> None:
    save_graphs(tmp_path, tiny[0].index, {PLAIN: tiny[0].model})
    loaded = PlainGraph.load(tmp_path)
    assert loaded.model == tiny[0].model
    assert loaded.index.parameters == tiny[0].index.parameters


def altered(folder: Path) -> None:
    with (folder / "plain.onnx").open("r+b") as handle:
        handle.seek(-9, 2)
        handle.write(b"\x00")


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (altered, "plain.onnx was altered or cut short since it was traced: remove the folder"),
        (lambda folder: (folder / "plain.onnx").unlink(), "plain.onnx: no such file; remove the folder"),
        (lambda folder: (folder / "graph.json").write_text("{"), "graph.json is damaged"),
    ],
)
def test_a_graph_that_is_not_what_was_traced_is_refused_in_one_line(
    tiny: tuple[PlainGraph, Bundle, Transformer], tmp_path: Path, break_it: Callable[[Path], None], text: str
) -> None:
    save_graphs(tmp_path, tiny[0].index, {PLAIN: tiny[0].model})
    break_it(tmp_path)
    with pytest.raises(StoreError) as caught:
        PlainGraph.load(tmp_path)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nodes_are_counted_as_in_the_file(tiny: tuple[PlainGraph, Bundle, Transformer], tmp_path: Path) -> None:
    graph, bundle, _ = tiny
    save_graphs(tmp_path, graph.index, {PLAIN: graph.model})
    onnx.save(fold_bundle(graph, bundle), tmp_path / "folded.onnx")
    assert node_types(tmp_path / "plain.onnx") == node_types(tmp_path / "folded.onnx")
