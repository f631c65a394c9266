"""The shared graph: every sample answers as its own task's model does, whatever else is in the batch and the banks."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from export.trace import trace_backbone, trace_layout
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import AdapterConfig, Target
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import graph_file, read_index
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.graphs.adapter_weights import Layout, adapter_weights, layout_of
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.runtimes.shared import SharedRunner
from tests.support.graphs import make_task, noise

NAME = "vit_small_patch14_reg4_dinov2"
KWARGS: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 28}
"""LayerScale, registers, a class token."""

LAYOUT = Layout(BlockTopology(2, 24))


def features(model: Transformer, images: Array) -> Array:
    """In float64, before the head."""
    model = model.double().eval()
    with torch.inference_mode():
        tokens = model.forward_features(torch.from_numpy(images).double())
        return np.asarray(model.forward_head(tokens, pre_logits=True).numpy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The traced backbone."""
    root = tmp_path_factory.mktemp("backbones") / NAME
    trace_backbone(load_backbone(NAME, Weights("random"), 10, **KWARGS), "0" * 64, root, LAYOUT)
    return root


def task(bottleneck: int, seed: int) -> tuple[dict[str, Array], Transformer]:
    """The rows of a task and its model."""
    config = AdapterConfig(bottleneck=bottleneck, experts=3, share="none", scale=0.7)
    bundle, model = make_task(NAME, config, seed, img_size=28)
    return adapter_weights(bundle), model


def test_a_mixed_batch_answers_each_sample_by_its_own_task(folder: Path) -> None:
    tasks = [task(5, 1), task(3, 2), task(20, 3)]
    bank = Bank(LAYOUT, bottleneck=4)
    runner = SharedRunner(open_runner(folder / "shared.onnx"), bank)
    slots = [bank.write(rows) for rows, _ in tasks]
    empty = bank.write({})
    images = np.concatenate([noise(), noise()[::-1]])
    order = np.array([slots[0], slots[1], empty, slots[2], slots[0], slots[1]])
    given = runner.run(images, order)
    plain = load_backbone(NAME, Weights("random"), **KWARGS)
    wanted = {slot: features(model, images) for slot, (_, model) in zip(slots, tasks, strict=True)}
    wanted[empty] = features(plain, images)
    for i, slot in enumerate(order):
        np.testing.assert_allclose(given[i], wanted[slot][i], atol=1e-5 * np.abs(wanted[slot][i]).max())
    assert np.abs(wanted[slots[0]] - wanted[empty]).max() > 1e-2


LOW_RANK = AdapterConfig(bottleneck=3, experts=3, scale=0.7, style="low-rank", targets=("q", "v"))


@pytest.mark.parametrize("targets", [("q", "v"), ("qkv",), ("k", "proj", "fc1", "fc2"), ("fc2",)])
def test_a_mixed_batch_of_low_rank_tasks_answers_each_sample_by_its_own(
    tmp_path: Path, targets: tuple[Target, ...]
) -> None:
    plain = load_backbone(NAME, Weights("random"), 10, **KWARGS)
    ranks = [replace(LOW_RANK, bottleneck=r, targets=targets) for r in (3, 9)]
    tasks = [make_task(NAME, adapter, seed, img_size=28) for seed, adapter in enumerate(ranks)]
    wide = layout_of(tasks[0][0].record)
    trace_backbone(plain, "0" * 64, tmp_path / "b", wide)
    bank = Bank(wide, bottleneck=2)
    check_mixed(SharedRunner(open_runner(tmp_path / "b" / wide.file), bank), plain, tasks)


def check_mixed(runner: SharedRunner, plain: Transformer, tasks: Sequence[tuple[Bundle, Transformer]]) -> None:
    """A batch of two tasks and the empty slot between them gives each sample the features of its own model."""
    slots = [runner.bank.write(adapter_weights(bundle)) for bundle, _ in tasks]
    empty = runner.bank.write({})
    images = noise()
    given = runner.run(images, np.array([slots[1], empty, slots[0]]))
    plain.reset_classifier(0)
    for i, model in enumerate((tasks[1][1], plain, tasks[0][1])):
        wanted = features(model, images)[i]
        np.testing.assert_allclose(given[i], wanted, atol=1e-5 * np.abs(wanted).max())
    for _, model in tasks:
        assert np.abs(features(model, images) - features(plain, images)).max() > 1e-2


SAME_SHAPES = {
    "shared-ssf.onnx": (AdapterConfig(style="ssf", scale=1.0), AdapterConfig(style="ssf", scale=1.0, blocks=1)),
    "shared-repadapter.onnx": (
        AdapterConfig(bottleneck=3, experts=3, scale=0.7, style="repadapter"),
        AdapterConfig(bottleneck=8, experts=1, scale=0.7, style="repadapter", groups=2),
    ),
}


@pytest.mark.parametrize("file", SAME_SHAPES)
def test_a_mixed_batch_of_ssf_or_repadapter_tasks_answers_each_sample_by_its_own(
    folder: Path, tmp_path: Path, file: str
) -> None:
    plain = load_backbone(NAME, Weights("random"), 10, **KWARGS)
    tasks = [make_task(NAME, adapter, seed, img_size=28) for seed, adapter in enumerate(SAME_SHAPES[file])]
    layout = layout_of(tasks[0][0].record)
    assert layout.file == layout_of(tasks[1][0].record).file == file
    copied = Path(shutil.copytree(folder, tmp_path / "b"))
    trace_layout(plain, copied, layout)
    bank = Bank(layout, bottleneck=2)
    check_mixed(SharedRunner(open_runner(copied / file), bank), plain, tasks)


def test_a_backbones_folder_takes_another_layout_and_keeps_what_it_had(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "b"))
    low_rank = layout_of(make_task(NAME, LOW_RANK, 1, img_size=28)[0].record)
    assert low_rank.file == "shared-qkv.onnx"
    before = {path.name: path.read_bytes() for path in copied.glob("*.onnx")}
    trace_layout(load_backbone(NAME, Weights("random"), 10, **KWARGS), copied, low_rank)
    index = read_index(copied)
    assert set(index.files) == {"plain.onnx", "shared.onnx", "shared-qkv.onnx"}
    assert all(graph_file(copied, index, name).is_file() for name in index.files)
    assert all((copied / name).read_bytes() == content for name, content in before.items())


def test_padding_other_slots_and_growth_change_no_answer(folder: Path) -> None:
    rows, _ = task(5, 1)
    images = noise()
    alone = Bank(LAYOUT, bottleneck=5)
    slot = alone.write(rows)
    before = SharedRunner(open_runner(folder / "shared.onnx"), alone).run(images, np.full(3, slot))
    bank = Bank(LAYOUT, bottleneck=16)
    first = bank.write(rows)
    runner = SharedRunner(open_runner(folder / "shared.onnx"), bank)
    padded = runner.run(images, np.full(3, first))
    np.testing.assert_allclose(padded, before, atol=1e-6 * np.abs(before).max())
    others = [bank.write(task(30, seed)[0]) for seed in (2, 3)]
    np.testing.assert_allclose(runner.run(images, np.full(3, first)), padded, atol=1e-6 * np.abs(before).max())
    bank.clear(others[0])
    np.testing.assert_allclose(runner.run(images, np.full(3, first)), padded, atol=1e-6 * np.abs(before).max())


def test_a_slot_that_is_written_anew_answers_at_once(folder: Path) -> None:
    bank = Bank(LAYOUT)
    runner = SharedRunner(open_runner(folder / "shared.onnx"), bank)
    images, (old, _), (new, model) = noise(), task(5, 1), task(5, 2)
    slot = bank.write(old)
    stale = runner.run(images, np.full(3, slot))
    bank.clear(slot)
    assert bank.write(new) == slot
    given, wanted = runner.run(images, np.full(3, slot)), features(model, images)
    np.testing.assert_allclose(given, wanted, atol=1e-5 * np.abs(wanted).max())
    assert np.abs(given - stale).max() > 1e-2


def test_graph_names_its_inputs_and_leaves_batch_slots_and_bottleneck_open(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "shared.onnx", providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["images", "slots", *LAYOUT.shapes(1)]
    shapes = {given.name: given.shape for given in session.get_inputs()}
    assert shapes["blocks.1.down"] == ["slots", 24, "bottleneck"]
    assert shapes["blocks.1.up_bias"] == ["slots", 24]
    assert session.get_outputs()[0].shape == ["batch", 24]


def test_index_knows_both_graphs(folder: Path) -> None:
    index = read_index(folder)
    assert (index.depth, index.embed_dim, set(index.files)) == (2, 24, {"plain.onnx", "shared.onnx"})
    assert {path.name for path in folder.iterdir()} == {"plain.onnx", "shared.onnx", "graph.json"}
