from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import GraphIndex
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.graphs.adapter_weights import Layout, adapter_weights
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.names import Arithmetic
from mosa_deploy.runtimes.shared import SharedRunner, SharedTask, apply_head, bank_scales
from mosa_deploy.runtimes.tensorrt_record import EngineRecord, write_record

LAYOUT = Layout(BlockTopology(1, 6))


class Recorder:
    """A runner whose features (B, C) are the slot of each image, and which notes what it is told."""

    precision: Arithmetic = "fp32"
    sizes = None

    def __init__(self, width: int = 6) -> None:
        self.width = width
        self.bound: list[Mapping[str, Array]] = []
        self.refreshed: list[Sequence[int]] = []

    def bind(self, tensors: Mapping[str, Array]) -> None:
        self.bound.append(tensors)

    def refresh(self, tensors: Mapping[str, Array], slots: Sequence[int]) -> None:
        self.refreshed.append(slots)

    def device_lost(self) -> bool:
        return False

    def release(self) -> None: ...

    def run(self, *inputs: NDArray[Any]) -> Array:
        images, slots = inputs
        assert len(images) == len(slots)
        return np.repeat(slots[:, None], self.width, axis=1).astype(np.float32)


def images(batch: int) -> Array:
    return np.zeros((batch, 3, 2, 2), dtype=np.float32)


def rows(bottleneck: int) -> dict[str, Array]:
    return {name: np.ones(shape, dtype=np.float32) for name, shape in LAYOUT.shapes(bottleneck).items()}


def head(seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((4, 6), dtype=np.float32), rng.standard_normal(4, dtype=np.float32)


def test_a_head_is_applied_as_torch_applies_a_linear_layer() -> None:
    features, (weight, bias) = torch.randn(5, 6), head(0)
    wanted = F.linear(features, torch.from_numpy(weight), torch.from_numpy(bias))
    np.testing.assert_allclose(apply_head(features.numpy(), (weight, bias)), wanted, atol=1e-6)


def test_a_bank_is_bound_once_and_not_at_each_run() -> None:
    runner, bank = Recorder(), Bank(LAYOUT, capacity=2)
    shared = SharedRunner(runner, bank)
    for _ in range(3):
        shared.run(images(1), np.array([0]))
    assert runner.bound == [bank.tensors]
    assert runner.refreshed == []


def test_the_next_run_is_told_which_slots_have_changed() -> None:
    runner, bank = Recorder(), Bank(LAYOUT, capacity=3)
    shared = SharedRunner(runner, bank)
    slots = [bank.write(rows(2)), bank.write(rows(3))]
    shared.run(images(1), np.array([0]))
    shared.run(images(1), np.array([0]))
    assert runner.refreshed == [slots]


def test_a_bank_that_grew_is_bound_again() -> None:
    runner, bank = Recorder(), Bank(LAYOUT, bottleneck=4)
    shared = SharedRunner(runner, bank)
    bank.write(rows(9))
    shared.run(images(1), np.array([0]))
    assert runner.bound[1:] == [bank.tensors]
    assert runner.bound[0] is not bank.tensors


def test_a_bundle_s_task_is_alone_in_its_bank_with_its_head_behind_the_graph(bundle: Bundle) -> None:
    task, runner = SharedTask.alone(bundle), Recorder(bundle.record.backbone.embed_dim)
    logits = task.answer_by(runner)(images(3))
    (bound,) = runner.bound
    for name, value in adapter_weights(bundle).items():
        held = bound[name][task.slot]
        np.testing.assert_array_equal(held[tuple(map(slice, value.shape))], value)
    features = np.full((3, runner.width), task.slot, dtype=np.float32)
    np.testing.assert_array_equal(logits, apply_head(features, bundle.head))


@pytest.mark.parametrize("k", [0, 1])
def test_tasks_of_one_bank_each_answer_from_their_own_slot(k: int) -> None:
    bank = Bank(LAYOUT, capacity=2)
    tasks = [SharedTask.write(bank, rows(2), head(seed)) for seed in range(2)]
    assert tasks[0].slot != tasks[1].slot
    logits = tasks[k].answer_by(Recorder())(images(2))
    wanted = apply_head(np.full((2, 6), tasks[k].slot, dtype=np.float32), tasks[k].head)
    np.testing.assert_array_equal(logits, wanted)


def test_an_engine_reads_rows_of_the_scales_of_the_file_that_it_was_built_from(tmp_path: Path) -> None:
    files = dict.fromkeys(("shared.onnx", "shared.int8-tensorrt.onnx"), "0" * 64)
    scales: dict[str, tuple[int, ...]] = {"blocks.0.down": (3, -1)}
    index = GraphIndex(
        backbone="0" * 64,
        depth=1,
        embed_dim=2,
        parameters={},
        files=files,
        scales={"shared.int8-tensorrt.onnx": scales},
    )
    (tmp_path / "graph.json").write_text(index.model_dump_json())
    record = EngineRecord(
        library="tensorrt",
        version="10",
        precision="int8",
        capability="sm86",
        batch_sizes=(1,),
        bank=(4, 4),
        onnx="shared.int8-tensorrt.onnx",
        onnx_sha256="",
        sha256="",
        parity="deferred",
    )
    write_record(tmp_path / "shared.int8.sm86.engine", record)
    found = {name: bank_scales(tmp_path / name) for name in (*files, "shared.int8.sm86.engine")}
    assert found["shared.onnx"] == {}
    assert found["shared.int8.sm86.engine"]["blocks.0.down"].tolist() == [8, 0.5]
    assert found["shared.int8-tensorrt.onnx"]["blocks.0.down"].tolist() == [8, 0.5]
