import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.errors import ConfigError, ProviderError, StoreError
from mosa_deploy.graphs.adapter_weights import Layout
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.names import GRAPH_RUNNERS, QUANTISATION_KEY, RunnerName
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.openvino import OpenVinoRunner
from mosa_deploy.runtimes.runner import check_runner, open_runner
from mosa_deploy.runtimes.shared import SharedRunner
from mosa_deploy.utils.processes import trim_memory

LAYOUT = Layout(BlockTopology(2, 24))
TOLERANCE: dict[RunnerName, float] = {
    "onnxruntime-cpu": 1e-5,
    "onnxruntime-cuda": 1e-3,
    "openvino": 1e-5,
    "openvino-bf16": 5e-2,
}
"""Largest error relative to the largest output. bf16 has eight bits, and CUDA multiplies in TF32."""


@pytest.fixture(params=GRAPH_RUNNERS)
def name(request: pytest.FixtureRequest) -> RunnerName:
    """Every runner of ONNX files that is here."""
    given: RunnerName = request.param
    if given == "onnxruntime-cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    if given.startswith("openvino"):
        pytest.importorskip("openvino")
    try:
        check_runner(given)
    except ProviderError as missing:
        pytest.skip(str(missing))
    return given


def noise(batch: int) -> Array:
    return np.random.default_rng(batch).standard_normal((batch, 3, 28, 28), dtype=np.float32)


def rows(bottleneck: int, seed: int) -> dict[str, Array]:
    """A task that moves the features."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in LAYOUT.shapes(bottleneck).items()}


def reference(path: Path, inputs: dict[str, Any]) -> Array:
    outputs: Any = ReferenceEvaluator(onnx.load(path)).run(None, inputs)
    return np.asarray(outputs[0])


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


def quantised(graph: Path, what_for: str) -> Path:
    """The graph, which says so in its metadata."""
    model = onnx.load(graph)
    model.metadata_props.add(key=QUANTISATION_KEY, value=what_for)
    onnx.save(model, graph)
    return graph


def test_what_was_quantised_for_tensorrt_keeps_its_pairs_of_q_and_dq(graph: Path) -> None:
    options = OnnxRunner(quantised(graph, "tensorrt")).session.get_session_options()
    assert options.get_session_config_entry("session.disable_quant_qdq") == "1"


def test_what_was_quantised_for_cpus_runs_by_integer_kernels(graph: Path) -> None:
    options = OnnxRunner(quantised(graph, "cpu")).session.get_session_options()
    with pytest.raises(RuntimeError, match=r"disable_quant_qdq"):
        options.get_session_config_entry("session.disable_quant_qdq")


def test_a_file_s_name_says_nothing_of_its_quantisation(graph: Path) -> None:
    renamed = graph.rename(graph.with_name("g.int8-tensorrt.onnx"))
    with pytest.raises(RuntimeError, match=r"disable_quant_qdq"):
        OnnxRunner(renamed).session.get_session_options().get_session_config_entry("session.disable_quant_qdq")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the provider is there")
def test_a_provider_that_is_not_there_is_an_error_and_never_a_silent_cpu(graph: Path) -> None:
    with pytest.raises(ProviderError, match=r"^CUDAExecutionProvider .*run on the CPU$"):
        OnnxRunner(graph, "cuda")


def test_a_provider_that_onnxruntime_lacks_names_the_package(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match="is not in this onnxruntime: install onnxruntime-gpu"):
        OnnxRunner(graph, "cuda")


def _fails(*_: object) -> None:
    raise RuntimeError("unspecified launch failure")


def test_a_cpu_is_never_lost(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = OnnxRunner(graph)
    monkeypatch.setattr("onnxruntime.OrtValue.ortvalue_from_numpy", _fails)
    assert not runner.device_lost()


@pytest.mark.parametrize(("copy", "lost"), [(_fails, True), (lambda *_: None, False)])
def test_a_gpu_to_which_nothing_can_be_copied_is_lost(
    graph: Path, monkeypatch: pytest.MonkeyPatch, copy: Callable[..., None], lost: bool
) -> None:
    runner = OnnxRunner(graph)
    runner.provider = "cuda"
    monkeypatch.setattr("onnxruntime.OrtValue.ortvalue_from_numpy", copy)
    assert runner.device_lost() is lost


def test_a_missing_graph_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.onnx: no such file; write it with `mosa export`$"):
        OnnxRunner(tmp_path / "none.onnx")


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_damaged_graph_is_refused_in_one_line(graph: Path, cut: int) -> None:
    graph.write_bytes(graph.read_bytes()[:cut])
    with pytest.raises(StoreError) as caught:
        OnnxRunner(graph)
    assert str(caught.value).startswith(f"{graph} cannot be loaded: ")
    assert str(caught.value).endswith("; export it again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_runner_answers_the_task_graph_as_the_reference_evaluator(
    traced: Path, name: RunnerName, batch: int
) -> None:
    found = open_runner(traced / "plain.onnx", name, threads=1).run(noise(batch))
    wanted = reference(traced / "plain.onnx", {"images": noise(batch)})
    assert (found.shape, found.dtype) == ((batch, 4), np.dtype(np.float32))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[name] * np.abs(wanted).max())


def test_every_runner_answers_the_shared_graph_as_the_reference_evaluator(traced: Path, name: RunnerName) -> None:
    bank = Bank(LAYOUT, bottleneck=8, capacity=3)
    slots = np.array([bank.write(rows(r, seed=r)) for r in (3, 8, 5)])[[2, 0, 1, 2]]
    runner = SharedRunner(open_runner(traced / "shared.onnx", name, threads=1), bank)
    wanted = reference(traced / "shared.onnx", {"images": noise(4), "slots": slots, **bank.tensors})
    np.testing.assert_allclose(runner.run(noise(4), slots), wanted, rtol=0, atol=TOLERANCE[name] * np.abs(wanted).max())
    other = runner.run(noise(4), np.roll(slots, 1))
    assert np.abs(other - wanted).max() > 0.1 * np.abs(wanted).max()


def test_a_slot_written_cleared_or_moved_by_growth_is_seen_at_the_next_run(traced: Path, name: RunnerName) -> None:
    bank = Bank(LAYOUT, bottleneck=4, capacity=1)
    runner = SharedRunner(open_runner(traced / "shared.onnx", name, threads=1), bank)

    def check(slot: int) -> Array:
        slots = np.full(2, slot)
        found = runner.run(noise(2), slots)
        wanted = reference(traced / "shared.onnx", {"images": noise(2), "slots": slots, **bank.tensors})
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[name] * np.abs(wanted).max())
        return found

    empty = check(0)
    first = bank.write(rows(4, seed=1))
    written = check(first)
    assert np.abs(written - empty).max() > 0.1 * np.abs(empty).max()
    bank.write(rows(9, seed=2))
    assert bank.growths == 1
    np.testing.assert_allclose(check(first), written, rtol=0, atol=TOLERANCE[name] * np.abs(written).max())
    bank.clear(first)
    np.testing.assert_allclose(check(first), empty, rtol=0, atol=TOLERANCE[name] * np.abs(empty).max())


def test_threads_that_share_a_runner_get_their_own_answers(traced: Path, name: RunnerName) -> None:
    bank = Bank(LAYOUT, bottleneck=4, capacity=2)
    bank.write(rows(4, seed=1))
    task = open_runner(traced / "plain.onnx", name, threads=1)
    shared = SharedRunner(open_runner(traced / "shared.onnx", name, threads=1), bank)
    batches = [1, 2, 3, 5] * 10

    def both(batch: int) -> tuple[Array, Array]:
        return task.run(noise(batch)), shared.run(noise(batch), np.zeros(batch, np.int64))

    alone = {batch: both(batch) for batch in set(batches)}
    with ThreadPoolExecutor(4) as pool:
        for batch, answers in zip(batches, pool.map(both, batches), strict=True):
            for found, wanted in zip(answers, alone[batch], strict=True):
                np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[name])


def test_a_run_with_too_few_inputs_is_refused(traced: Path, name: RunnerName) -> None:
    with pytest.raises(ValueError, match="zip"):
        open_runner(traced / "shared.onnx", name).run(noise(1))


def test_openvino_refuses_what_is_missing_or_damaged_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "g.onnx"
    with pytest.raises(StoreError, match=r"g\.onnx: no such file; write it with `mosa export`$"):
        open_runner(path, "openvino")
    path.write_bytes(b"")
    with pytest.raises(StoreError) as caught:
        open_runner(path, "openvino")
    assert str(caught.value).startswith(f"{path} cannot be loaded: Unable to read the model")
    assert str(caught.value).endswith("; export it again")
    assert "\n" not in str(caught.value)


def test_openvino_that_is_not_installed_names_the_extra(traced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for refused in (lambda: check_runner("openvino"), lambda: open_runner(traced / "plain.onnx", "openvino-bf16")):
        with pytest.raises(ProviderError, match=r"^OpenVINO is not installed: pip install 'mosa-deploy\[openvino\]'$"):
            refused()


def test_bf16_is_refused_by_name_where_the_cpu_lacks_it(traced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *arguments: ["FP32", "INT8"])
    with pytest.raises(ProviderError, match=r"^this CPU has no bf16: use OpenVINO in fp32$"):
        open_runner(traced / "plain.onnx", "openvino-bf16")
    check_runner("openvino")


def test_openvino_keeps_to_the_precision_and_the_threads_it_is_given(traced: Path, name: RunnerName) -> None:
    runner = open_runner(traced / "plain.onnx", name, threads=1)
    if not isinstance(runner, OpenVinoRunner):
        pytest.skip("not OpenVINO")
    wanted = "bfloat16" if name == "openvino-bf16" else "float32"
    assert wanted in str(runner.compiled.get_property("INFERENCE_PRECISION_HINT"))
    assert runner.compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_an_unknown_runner_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"^unknown runner 'openvin'; did you mean openvino"):
        check_runner("openvin")


def test_what_an_extra_brings_is_not_loaded_before_a_runner_needs_it() -> None:
    heavy = {"openvino", "torch", "tensorrt", "tensorrt_rtx", "cuda"}
    code = f"import sys, mosa_deploy.runtimes.runner; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_driver_cuda_is_refused_before_a_library_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("mosa_deploy.runtimes.cuda.has_driver", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("preloaded"))
    with pytest.raises(ProviderError, match=r"did not start, there is no NVIDIA driver here: run on the CPU$"):
        check_runner("onnxruntime-cuda")
    assert loaded == []


@pytest.mark.parametrize("bound", [False, True])
def test_the_memory_of_large_batches_is_given_back_once_it_is_asked_for(
    name: RunnerName, bound: bool, tmp_path: Path
) -> None:
    if name == "onnxruntime-cuda":
        pytest.skip("its memory is on the device")
    path, width = tmp_path / "wide.onnx", 1 << 16
    nodes = [
        helper.make_node("MatMul", ["images", "weight"], ["product"]),
        helper.make_node("Erf", ["product"], ["wide"]),
        helper.make_node("ReduceMean", ["wide"], ["mean"], axes=[1]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1])
    weight = helper.make_tensor_value_info("weight", TensorProto.FLOAT, [1, width])
    mean = helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 1])
    values = np.full((1, width), 0.5, np.float32)
    constant = [] if bound else [numpy_helper.from_array(values, "weight")]
    graph = helper.make_graph(nodes, "wide", [images, weight] if bound else [images], [mean], constant)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    runner = open_runner(path, name)
    if bound:
        runner.bind({"weight": values})
    one, many = np.ones((1, 1), np.float32), np.ones((512, 1), np.float32)
    answer = runner.run(one)
    before = psutil.Process().memory_info().rss
    runner.run(many)
    grown = psutil.Process().memory_info().rss - before
    assert grown > many.size * width  # A quarter of its intermediate values.
    runner.release()
    assert np.array_equal(runner.run(one), answer)
    trim_memory()
    # ONNX Runtime keeps the block of memory in which the output lies, which may be one of the two large ones.
    assert psutil.Process().memory_info().rss - before < 0.6 * grown
