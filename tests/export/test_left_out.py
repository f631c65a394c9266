from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.int8 import constant_products, to_int8
from export.left_out import in_fp32, most_harmful, quantised_products
from mosa_deploy.runtimes.names import Quantisation
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from tests.support.graphs import noise

FEEDS = [{"images": noise(8)}]

HARMED = "blocks.1.mlp.fc2.weight"


@pytest.fixture(scope="module")
def model(traced: Path) -> onnx.ModelProto:
    """A graph in which a hidden unit of the second FFN is huge and never read, so int8 has no steps for the others."""
    graph = onnx.load(traced / "plain.onnx")
    for tensor in graph.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if tensor.name == "blocks.1.mlp.fc1.bias":
            value[0] = 1e4
        elif tensor.name == HARMED:
            value[0] = 0
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return graph


@pytest.mark.parametrize("quantisation", ["cpu", "tensorrt"])
def test_the_product_whose_input_has_no_steps_left_comes_first(
    model: onnx.ModelProto, quantisation: Quantisation
) -> None:
    ranked = most_harmful(model, to_int8(model, FEEDS, quantisation), FEEDS)
    assert sorted(ranked) == sorted(constant_products(model))
    weights = {node.name: node.input[1] for node in model.graph.node if len(node.input) > 1}
    assert weights[ranked[0]] == HARMED


def test_products_that_are_left_out_are_as_they_were_and_the_others_stay_in_int8(model: onnx.ModelProto) -> None:
    whole, names = to_int8(model, FEEDS, "cpu"), constant_products(model)
    mixed = in_fp32(model, whole, names[:3])
    onnx.checker.check_model(mixed, full_check=True)
    assert {node.name for node in quantised_products(mixed)} == set(names[3:])
    assert {node.name for node in quantised_products(whole)} == set(names)
    assert mixed.metadata_props == whole.metadata_props
    constants = {tensor.name for tensor in mixed.graph.initializer}
    assert {node.input[1] for node in model.graph.node if node.name in names[:3]} <= constants


def test_with_every_product_left_out_the_graph_is_the_one_before(model: onnx.ModelProto, tmp_path: Path) -> None:
    mixed = in_fp32(model, to_int8(model, FEEDS, "cpu"), constant_products(model))
    answers = []
    for name, graph in (("before", model), ("after", mixed)):
        onnx.save(graph, tmp_path / f"{name}.onnx")
        answers.append(OnnxRunner(tmp_path / f"{name}.onnx", threads=1).run(noise(3)))
    np.testing.assert_array_equal(answers[0], answers[1])
    assert {node.op_type for node in mixed.graph.node} == {node.op_type for node in model.graph.node}
    assert len(mixed.graph.initializer) == len(model.graph.initializer)
