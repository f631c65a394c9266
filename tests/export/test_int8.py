from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from scipy.spatial.distance import cosine

from export.int8 import constant_products, require_enough, to_int8
from mosa_deploy.bundles.calibration import Samples
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import DataError
from mosa_deploy.runtimes.names import QUANTISATION_KEY, Quantisation
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from tests.support.graphs import noise, random_bank

PRODUCTS = {
    *(f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "head.weight",
}


@pytest.fixture(scope="module")
def plain(traced: Path) -> onnx.ModelProto:
    return onnx.load(traced / "plain.onnx")


@pytest.fixture(scope="module", params=get_args(Quantisation))
def quantisation(request: pytest.FixtureRequest) -> Quantisation:
    given: Quantisation = request.param
    return given


@pytest.fixture(scope="module")
def quantised(plain: onnx.ModelProto, quantisation: Quantisation) -> onnx.ModelProto:
    return to_int8(plain, [{"images": noise(16)}, {"images": noise(17)}], quantisation)


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_a_file_says_what_it_was_quantised_for(quantised: onnx.ModelProto, quantisation: Quantisation) -> None:
    assert {entry.key: entry.value for entry in quantised.metadata_props}[QUANTISATION_KEY] == quantisation


def test_products_with_a_weight_are_quantised_and_nothing_else(
    plain: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    assert len(constant_products(plain)) == len(PRODUCTS)
    made = {output: node for node in quantised.graph.node for output in node.output}
    weights, activations = set(), 0
    for node in quantised.graph.node:
        sources = [made.get(name) for name in node.input]
        if not any(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            continue
        if node.op_type == "QuantizeLinear":
            continue
        assert node.name in constant_products(plain)
        assert all(source is not None and source.op_type == "DequantizeLinear" for source in sources[:2])
        weights.add(made[node.input[1]].input[0].removesuffix("_quantized"))
        activations += made[made[node.input[0]].input[0]].op_type == "QuantizeLinear"
    assert weights == PRODUCTS
    assert activations == len(PRODUCTS)


def test_weights_are_rounded_to_the_grid_of_their_own_output_channel(
    plain: onnx.ModelProto, quantised: onnx.ModelProto, quantisation: Quantisation
) -> None:
    before, after = constants(plain), constants(quantised)
    # Seven bits for CPUs that would overflow, else eight; the grid is symmetric.
    steps = 64 if quantisation == "cpu" else 127
    for name in PRODUCTS - {"head.weight"}:
        whole, whole_numbers, scale = before[name], after[f"{name}_quantized"], after[f"{name}_scale"]
        assert whole_numbers.dtype == np.int8
        assert scale.shape == (whole.shape[1],)
        np.testing.assert_allclose(scale, np.abs(whole).max(axis=0) / steps, rtol=0.02)
        assert np.abs(whole_numbers * scale - whole).max() <= scale.max() / 2 * 1.001
        assert not after[f"{name}_zero_point"].any()


def test_for_tensorrt_everything_is_symmetric_and_no_bias_is_touched(
    plain: onnx.ModelProto, quantised: onnx.ModelProto, quantisation: Quantisation
) -> None:
    found = constants(quantised)
    points = {name: value for name, value in found.items() if name.endswith("zero_point")}
    kinds = {tensor.data_type for tensor in quantised.graph.initializer if tensor.name in points}
    if quantisation == "tensorrt":
        assert kinds == {TensorProto.INT8}
        assert not any(value.any() for value in points.values())
        assert not [name for name in found if "bias" in name and name not in constants(plain)]
    else:
        assert TensorProto.UINT8 in kinds


def test_onnx_runtime_s_kernels_answer_as_the_formula_of_the_standard(
    quantised: onnx.ModelProto, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    onnx.save(quantised, path)
    outputs: Any = ReferenceEvaluator(quantised).run(None, {"images": noise(4)})
    wanted, given = np.asarray(outputs[0]), OnnxRunner(path).run(noise(4))
    # A value on the edge of two steps may fall on either side.
    assert np.abs(given - wanted).max() <= 3e-2 * np.abs(wanted).max()


def test_answers_stay_near_the_fp32_graph_s(traced: Path, quantised: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(quantised, tmp_path / "int8.onnx")
    wanted, given = (OnnxRunner(path).run(noise(6)) for path in (traced / "plain.onnx", tmp_path / "int8.onnx"))
    assert min(1 - cosine(a, b) for a, b in zip(given, wanted, strict=True)) >= 0.99
    assert np.abs(given - wanted).max() > 1e-4 * np.abs(wanted).max()


def test_a_shared_graph_leaves_its_banks_in_fp32_so_that_tasks_can_be_added(
    traced: Path, quantisation: Quantisation, tmp_path: Path
) -> None:
    shared, calibrated, other = onnx.load(traced / "shared.onnx"), random_bank(), random_bank(6, 2)
    slots = np.array([0, 1, 0])
    model = to_int8(
        shared, [{"images": noise(16), "slots": np.zeros(16, np.int64), **calibrated.tensors}], quantisation
    )
    onnx.save(model, tmp_path / "int8.onnx")

    def features(path: Path) -> Array:
        runner = OnnxRunner(path)
        runner.bind(other.tensors)
        return runner.run(noise(3), slots)

    wanted, given = features(traced / "shared.onnx"), features(tmp_path / "int8.onnx")
    assert min(1 - cosine(a, b) for a, b in zip(given, wanted, strict=True)) >= 0.99
    banks = {entry.name for entry in model.graph.input[2:]}
    assert {node.op_type for node in model.graph.node for name in node.input if name in banks} == {"GatherND"}


@pytest.mark.parametrize(
    ("count", "line"),
    [
        (0, r"calibration\.npz: no such file; int8 is calibrated on it"),
        (31, r"calibration\.npz holds 31 images, int8 needs at least 32"),
    ],
)
def test_too_few_images_to_calibrate_on_are_refused_with_the_way_out(tmp_path: Path, count: int, line: str) -> None:
    with pytest.raises(DataError, match=rf"{line}: tune the task again, or leave int8 out of --precision$"):
        require_enough(some(count) if count else None, tmp_path)


def test_32_images_are_enough_to_calibrate_on(tmp_path: Path) -> None:
    require_enough(some(32), tmp_path)


def some(count: int) -> Samples:
    return Samples.unlabelled(np.zeros((count, 4, 4, 3), dtype=np.uint8))
