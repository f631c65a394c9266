"""A shared graph that is cut in two computes what it computes as a whole, to the last bit."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.graphs.cut import cut_graph
from mosa_deploy.runtimes.names import EXECUTION_PROVIDERS
from tests.support import eva, swin
from tests.support.tasks import Traced

BATCH, SIDE, BOTTLENECK = 3, 32, 4

Inputs = dict[str, np.typing.NDArray[Any]]


def inputs_of(model: onnx.ModelProto, later: str) -> Inputs:
    """Images of noise, and banks of two slots: an empty one, and one of a task in the blocks whose names begin so."""
    generator = np.random.default_rng(0)
    images, slots, *banks = (value.name for value in model.graph.input)
    given: Inputs = {images: generator.standard_normal((BATCH, 3, SIDE, SIDE), dtype=np.float32)}
    given[slots] = np.ones(BATCH, dtype=np.int64)
    for value in model.graph.input[2:]:
        sizes = [dim.dim_value or BOTTLENECK for dim in value.type.tensor_type.shape.dim]
        given[value.name] = np.zeros((2, *sizes[1:]), dtype=np.float32)
    for name in banks:
        if name.startswith(later):
            given[name][1] = 0.3 * generator.standard_normal(given[name].shape[1:])
    return given


def run(model: onnx.ModelProto, given: Inputs) -> Array:
    """The output of a graph, which takes what it reads of the inputs."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[EXECUTION_PROVIDERS["cpu"]])
    (output,) = session.run(None, {value.name: given[value.name] for value in session.get_inputs()})
    return np.asarray(output)


def weights(model: onnx.ModelProto) -> set[str]:
    """The backbone's parameters that a graph holds, by timm's names."""
    return {tensor.name.removeprefix("backbone.") for tensor in model.graph.initializer}


@pytest.fixture
def whole(request: pytest.FixtureRequest, traced_store: Traced, styled_store: Path) -> onnx.ModelProto:
    """A shared graph: its backbone and its file."""
    name, file = request.param
    store = styled_store if name == EMBEDDED else traced_store(name)
    (path,) = store.glob(f"backbones/*/{file}")
    return onnx.load(path)


@pytest.mark.parametrize(
    ("whole", "later", "left"),
    [
        # An adapter beside an FFN reads what attention has added, so that attention is in common too.
        ((EMBEDDED, "shared.onnx"), "blocks.5.", ("blocks.4.", "blocks.5.attn.")),
        ((EMBEDDED, "shared-qkv.onnx"), "blocks.5.", ("blocks.4.",)),
        ((EMBEDDED, "shared-ssf.onnx"), "blocks.5.", ("blocks.4.",)),
        ((EMBEDDED, "shared-repadapter.onnx"), "blocks.5.", ("blocks.4.",)),
        ((eva.NAME, "shared.onnx"), "blocks.1.", ("blocks.0.", "blocks.1.attn.")),
        ((swin.NAME, "shared.onnx"), "layers.1.", ("layers.0.", "layers.1.downsample", "layers.1.blocks.0.attn.")),
    ],
    indirect=["whole"],
)
def test_two_parts_give_what_the_whole_graph_gives(whole: onnx.ModelProto, later: str, left: tuple[str, ...]) -> None:
    given = inputs_of(whole, later)
    cut = cut_graph(whole, [name for name in given if name.startswith(later)])
    tokens = cut.prefix.graph.output[0].name
    found = run(cut.suffix, given | {tokens: run(cut.prefix, given)})
    np.testing.assert_array_equal(found, run(whole, given))
    plain = {name: np.zeros_like(value) if name.startswith(later) else value for name, value in given.items()}
    assert np.abs(found - run(whole, plain)).max() > 0.01
    assert not any(name.startswith(left) for name in weights(cut.suffix))
    assert weights(cut.prefix) | weights(cut.suffix) == weights(whole)


def small(*nodes: tuple[str, list[str], str]) -> onnx.ModelProto:
    """A graph of these nodes: kind, inputs and output. It reads a bank of block 1, and gives `features`."""
    kinds = {"images": TensorProto.FLOAT, "slots": TensorProto.INT64, "blocks.1.down": TensorProto.FLOAT}
    given = [helper.make_tensor_value_info(name, kind, [3]) for name, kind in kinds.items()]
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [3])
    made = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes]
    return helper.make_model(helper.make_graph(made, "small", given, [features]))


def test_no_value_is_taken_that_others_go_round() -> None:
    model = small(
        ("Relu", ["images"], "tokens"),
        ("Sigmoid", ["tokens"], "norm"),
        ("Gather", ["blocks.1.down", "slots"], "own"),
        ("Mul", ["norm", "own"], "adapted"),
        ("Add", ["tokens", "adapted"], "sum"),
        ("Neg", ["norm"], "beside"),
        ("Add", ["sum", "beside"], "features"),
    )
    cut = cut_graph(model, ["blocks.1.down"])
    assert [node.op_type for node in cut.prefix.graph.node] == ["Relu"]
    assert [value.name for value in cut.suffix.graph.input] == ["tokens", "slots", "blocks.1.down"]


def test_a_graph_whose_end_reads_the_images_cannot_be_cut() -> None:
    model = small(
        ("Relu", ["images"], "tokens"),
        ("Gather", ["blocks.1.down", "slots"], "own"),
        ("Add", ["tokens", "own"], "adapted"),
        ("Add", ["adapted", "images"], "features"),
    )
    with pytest.raises(ValueError, match=r"^nothing runs before the blocks that differ$"):
        cut_graph(model, ["blocks.1.down"])
