from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.spatial.distance import cosine

from export.int8 import to_int8
from export.smooth import exponents, smooth, smoothable
from export.trace import trace_shared
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.graph_index import scales_of
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.graphs.adapter_weights import Layout
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from tests.support.graphs import noise, random_bank

CHANNEL = 5

FACTORS = (200.0, 20_000.0)


def with_outliers(plain: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """One channel of every norm2 is larger, and what fc1 reads of it smaller: in fp32 the same function."""
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if ".norm2." in tensor.name:
            value[CHANNEL] *= factor
        elif tensor.name.endswith("mlp.fc1.weight"):
            value[CHANNEL] /= factor
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


@pytest.fixture(scope="module")
def plain(traced: Path) -> onnx.ModelProto:
    return onnx.load(traced / "plain.onnx")


@pytest.fixture(scope="module")
def shared(traced: Path) -> onnx.ModelProto:
    return onnx.load(traced / "shared.onnx")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Array]:
    """Runs a graph on three images of noise, with a bank if it reads one."""

    def run(model: onnx.ModelProto, bank: Bank | None = None) -> Array:
        onnx.save(model, tmp_path / "graph.onnx")
        runner = OnnxRunner(tmp_path / "graph.onnx", threads=1)
        if bank is None:
            return runner.run(noise(3))
        runner.bind(bank.tensors)
        return runner.run(noise(3), np.array([0, 1, 2]))

    return run


def feeds(bank: Bank | None = None) -> list[dict[str, NDArray[Any]]]:
    images = noise(16)
    return [{"images": images} if bank is None else {"images": images, "slots": np.zeros(16, np.int64), **bank.tensors}]


def test_both_norms_of_every_block_are_read_by_products_alone(plain: onnx.ModelProto) -> None:
    weights = {node.name: node.input[1] for node in plain.graph.node if node.op_type == "MatMul"}
    assert [[weights[name] for name in norm.products] for norm in smoothable(plain)] == [
        [f"blocks.{i}.{layer}.weight"] for i in (0, 1) for layer in ("attn.qkv", "mlp.fc1")
    ]


def test_in_a_shared_graph_the_bank_reads_what_fc1_reads(shared: onnx.ModelProto) -> None:
    assert [norm.banks for norm in smoothable(shared)] == [(), ("blocks.0.down",), (), ("blocks.1.down",)]


def test_a_low_rank_bank_reads_what_qkv_reads() -> None:
    model = load_backbone("vit_small_patch14_reg4_dinov2", Weights("random"), 4, 28, depth=1, embed_dim=24, num_heads=3)
    shared = trace_shared(model, Layout(BlockTopology(1, 24), (("attn.qkv", 24, 72),), "low-rank"))
    assert [norm.banks for norm in smoothable(shared)] == [("blocks.0.attn.qkv.down",), ()]


def test_a_norm_that_something_else_reads_stays_as_it_is() -> None:
    def graph(*outputs: str) -> onnx.ModelProto:
        nodes = [
            helper.make_node("LayerNormalization", ["x", "gain"], ["n"], name="norm"),
            helper.make_node("MatMul", ["n", "weight"], ["y"], name="product"),
        ]
        constants = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in (("gain", 4), ("weight", (4, 2)))]
        given, *made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", *outputs))
        return helper.make_model(helper.make_graph(nodes, "g", [given], made, constants))

    assert [norm.norm for norm in smoothable(graph("y"))] == ["norm"]
    assert smoothable(graph("y", "n")) == []


@pytest.mark.parametrize("factor", FACTORS)
def test_not_a_bit_of_fp32_changes(plain: onnx.ModelProto, run: Callable[..., Array], factor: float) -> None:
    model = with_outliers(plain, factor)
    smoothed = smooth(model, feeds())
    assert not smoothed.exponents
    np.testing.assert_array_equal(run(smoothed.model), run(model))


def test_not_a_bit_changes_where_the_bank_has_the_scales(
    shared: onnx.ModelProto, run: Callable[..., Array], traced: Path
) -> None:
    smoothed = smooth(shared, feeds(random_bank()))
    assert set(smoothed.exponents) == {"blocks.0.down", "blocks.1.down"}
    bank = random_bank(scales=scales_of(smoothed.exponents))
    np.testing.assert_array_equal(run(smoothed.model, bank), run(shared, random_bank()))
    assert np.abs(run(smoothed.model, random_bank()) - run(shared, random_bank())).max() > 0


def test_the_product_of_norm_and_weight_is_the_same_in_float64(plain: onnx.ModelProto) -> None:
    model = with_outliers(plain, 200.0)

    def matrices(graph: onnx.ModelProto) -> list[NDArray[np.float64]]:
        """diag(gain) W of every norm and product."""
        tensors = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.graph.initializer}
        nodes = {node.name: node for node in graph.graph.node}
        return [
            tensors[nodes[norm.norm].input[1]][:, None] * tensors[nodes[norm.products[0]].input[1]]
            for norm in smoothable(graph)
        ]

    for before, after in zip(matrices(model), matrices(smooth(model, feeds()).model), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("factor", FACTORS)
def test_int8_with_outlier_channels_is_as_near_as_without(
    plain: onnx.ModelProto, run: Callable[..., Array], factor: float
) -> None:
    model = with_outliers(plain, factor)
    wanted = run(plain)

    def nearness(graph: onnx.ModelProto) -> float:
        return float(min(1 - cosine(a, b) for a, b in zip(run(graph), wanted, strict=True)))

    assert nearness(to_int8(smooth(model, feeds()).model, feeds(), "cpu")) >= 0.99
    assert nearness(to_int8(model, feeds(), "cpu")) < 0.99


def test_a_channel_that_is_always_zero_or_never_read_keeps_its_size() -> None:
    found = exponents(np.array([0, 1, 64, 1, 1], np.float32), np.array([1, 0, 1, 1, 4], np.float32))
    assert found.tolist() == [0, 0, 3, 0, -1]
    assert exponents(np.zeros(3, np.float32), np.ones(3, np.float32)).tolist() == [0, 0, 0]
