from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mosa_deploy.errors import ProviderError, StoreError
from mosa_deploy.preprocess import Array
from mosa_deploy.runners import OnnxRunner


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Logits of 4 classes from the mean of each channel, with a nonlinearity; any batch."""
    weight = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Tanh", ["flat"], ["bent"]),
        helper.make_node("MatMul", ["bent", "weight"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, None, None])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    made = helper.make_graph(nodes, "toy", [images], [logits], [numpy_helper.from_array(weight, "weight")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def images(batch: int) -> Array:
    return np.random.default_rng(batch).standard_normal((batch, 3, 5, 6)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 3])
def test_runner_gives_the_reference_evaluators_logits(graph: Path, batch: int) -> None:
    outputs: Any = ReferenceEvaluator(onnx.load(graph)).run(None, {"images": images(batch)})
    found = OnnxRunner(graph).run(images(batch))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, outputs[0], rtol=0, atol=1e-6)


def test_threads_and_spinning_reach_the_session_and_not_the_answer(graph: Path) -> None:
    runner = OnnxRunner(graph, threads=1, spinning=False)
    options = runner.session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    np.testing.assert_allclose(runner.run(images(2)), OnnxRunner(graph).run(images(2)), rtol=0, atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the provider is there")
def test_a_provider_that_is_not_there_is_an_error_and_never_a_silent_cpu(graph: Path) -> None:
    with pytest.raises(ProviderError, match=r"^CUDAExecutionProvider .*use provider 'cpu'$"):
        OnnxRunner(graph, "cuda")


def test_a_provider_that_onnxruntime_lacks_names_the_package(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match="is not in this onnxruntime: install onnxruntime-gpu"):
        OnnxRunner(graph, "cuda")


def test_a_missing_graph_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.onnx: no such file; write it with `python -m export`$"):
        OnnxRunner(tmp_path / "none.onnx")


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_damaged_graph_is_refused_in_one_line(graph: Path, cut: int) -> None:
    graph.write_bytes(graph.read_bytes()[:cut])
    with pytest.raises(StoreError) as caught:
        OnnxRunner(graph)
    assert str(caught.value).startswith(f"{graph} cannot be loaded: ")
    assert str(caught.value).endswith("; export it again")
    assert "\n" not in str(caught.value)
