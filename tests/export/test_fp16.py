from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from scipy.spatial.distance import cosine

from export.fp16 import Watch, require_finite, to_fp16
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ParityError
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from tests.support.graphs import noise, random_bank


def reference(path: Path, inputs: dict[str, Any]) -> Array:
    outputs: Any = ReferenceEvaluator(onnx.load(path)).run(None, inputs)
    return np.asarray(outputs[0])


@pytest.fixture(scope="module")
def halves(traced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halves")
    for name in ("plain.onnx", "shared.onnx"):
        onnx.save(to_fp16(onnx.load(traced / name)), folder / name)
    return folder


def check(given: Array, wanted: Array) -> None:
    assert np.abs(given - wanted).max() <= 5e-3 * np.abs(wanted).max()
    assert min(1 - cosine(a, b) for a, b in zip(given, wanted, strict=True)) >= 0.999


def test_a_task_s_graph_in_fp16_answers_as_the_fp32_one_by_another_evaluator(traced: Path, halves: Path) -> None:
    wanted = reference(traced / "plain.onnx", {"images": noise(5)})
    given = OnnxRunner(halves / "plain.onnx").run(noise(5))
    check(given, wanted)
    assert np.abs(given - wanted).max() > 1e-6 * np.abs(wanted).max()


def test_a_shared_graph_in_fp16_answers_each_sample_by_its_own_slot(traced: Path, halves: Path) -> None:
    bank, slots = random_bank(), np.array([2, 0, 1])
    wanted = reference(traced / "shared.onnx", {"images": noise(3), "slots": slots, **bank.tensors})
    runner = OnnxRunner(halves / "shared.onnx")
    runner.bind(bank.tensors)
    check(runner.run(noise(3), slots), wanted)


@pytest.mark.parametrize("name", ["plain.onnx", "shared.onnx"])
def test_the_file_is_valid_and_half_the_size_with_the_inputs_and_outputs_of_the_fp32_one(
    traced: Path, halves: Path, name: str
) -> None:
    onnx.checker.check_model(halves / name, full_check=True)
    before, after = onnx.load(traced / name).graph, onnx.load(halves / name).graph
    for one, other in zip((*before.input, *before.output), (*after.input, *after.output), strict=True):
        assert (one.name, one.type.tensor_type.elem_type) == (other.name, other.type.tensor_type.elem_type)
    kinds = Counter[int]()
    for tensor in after.initializer:
        kinds[tensor.data_type] += int(np.prod(tensor.dims))
    assert kinds[TensorProto.FLOAT16] > 20 * kinds[TensorProto.FLOAT]


def test_stale_shapes_between_the_nodes_are_not_trusted(traced: Path) -> None:
    model = onnx.load(traced / "plain.onnx")
    for entry in model.graph.value_info:
        for dim in entry.type.tensor_type.shape.dim:
            dim.dim_value = 1000
    assert len(to_fp16(model).graph.node) == len(to_fp16(onnx.load(traced / "plain.onnx")).graph.node)


def test_norms_and_softmax_read_and_write_fp32(halves: Path) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(halves / "plain.onnx")).graph
    types = {entry.name: entry.type.tensor_type.elem_type for entry in (*graph.value_info, *graph.output)}
    delicate = [node for node in graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    assert Counter(node.op_type for node in delicate) == {"LayerNormalization": 5, "Softmax": 2}
    assert {types[name] for node in delicate for name in (node.input[0], node.output[0])} == {TensorProto.FLOAT}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert {types[node.output[0]] for node in products} == {TensorProto.FLOAT16}


def test_a_bank_is_gathered_before_it_is_cast_so_that_a_run_never_casts_all_of_it(halves: Path) -> None:
    graph = onnx.load(halves / "shared.onnx").graph
    banks = {entry.name for entry in graph.input[2:]}
    readers = [node.op_type for node in graph.node for name in node.input if name in banks]
    assert readers == ["GatherND"] * len(banks)


def overflowing(factor: float) -> onnx.ModelProto:
    """Means of channels, twice multiplied: by `factor` at `grows`, and by its inverse at `shrinks`."""
    weights = [
        numpy_helper.from_array(np.eye(3, dtype=np.float32) * np.float32(value), name)
        for name, value in (("large", factor), ("small", 1 / factor))
    ]
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"], name="pools"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flattens"),
        helper.make_node("MatMul", ["flat", "large"], ["grown"], name="grows"),
        helper.make_node("MatMul", ["grown", "small"], ["logits"], name="shrinks"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "toy", [images], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_the_first_node_that_leaves_fp16_is_named_with_its_weight(tmp_path: Path) -> None:
    images = np.ones((3, 3, 4, 4), dtype=np.float32)
    images[1] = 100
    path = tmp_path / "toy.fp16.onnx"
    onnx.save(to_fp16(overflowing(5000)), path)
    # What comes out is finite: on the CPU both products are made in fp32, and the rounding between them is left out.
    assert np.isfinite(OnnxRunner(path).run(images)).all()
    feeds = [{"images": image[None]} for image in images]
    with pytest.raises(ParityError, match=r"^toy\.fp16\.onnx: node grows \(MatMul, large\) makes NaN or inf") as caught:
        require_finite("toy.fp16.onnx", path, feeds)
    assert str(caught.value).endswith("Leave this precision out of --precision")
    require_finite("toy.fp16.onnx", path, [feeds[0], feeds[2]])


def test_a_transformer_s_first_odd_node_is_found_behind_its_norms(traced: Path) -> None:
    model = onnx.load(traced / "plain.onnx")
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "blocks.1.mlp.fc2.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e6), weight.name))
    found = Watch(to_fp16(model)).first_non_finite({"images": noise(1)})
    assert found is not None
    assert found.endswith("(MatMul, blocks.1.mlp.fc2.weight)")
