"""The graphs that are timed: of one task, all of them give the answers of the folded model in float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from timm.models.vision_transformer import VisionTransformer

from export.options import VARIANTS
from export.trace import node_types
from export.variants import Task, Variant, flops, in_precision, outline, random_task, write_variants
from mosa_deploy.adapters.attach import attach
from mosa_deploy.adapters.fold import fold, widened_ratio
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import READERS, SCALED, AdapterConfig
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.errors import ProviderError
from mosa_deploy.runtimes.names import Precision, RunnerName
from mosa_deploy.runtimes.runner import check_runner

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 24, "num_heads": 3}
TOLERANCE: dict[RunnerName, float] = {"onnxruntime-cpu": 1e-5, "openvino": 1e-5, "openvino-bf16": 5e-2}


def backbone() -> Transformer:
    """LayerScale, registers, a class token; timm draws the head's weights from the global generator."""
    torch.manual_seed(0)
    return load_backbone("vit_small_patch14_reg4_dinov2", Weights("random"), 10, 28, **SMALL)


@pytest.fixture(scope="module")
def tasks() -> dict[int, list[Task]]:
    """Three of each bottleneck."""
    return {r: [random_task(BlockTopology(2, 24), r, 10, seed) for seed in range(3)] for r in (3, 7)}


@pytest.fixture(scope="module")
def variants(tasks: dict[int, list[Task]], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Variant]:
    found = write_variants(tmp_path_factory.mktemp("variants"), backbone(), tasks, VARIANTS)
    return {(variant.name, variant.bottleneck): variant for variant in found}


def noise(batch: int) -> Array:
    return np.random.default_rng(0).standard_normal((batch, 3, 28, 28), dtype=np.float32)


def logits(images: Array, task: Task | None) -> Array:
    """Logits of the torch model with the task's adapter weights and an identity affine in its norm, in float64."""
    model = backbone()
    if task is not None:
        r = task.weights["blocks.0.down"].shape[1]
        attach(model, AdapterConfig(r, scale=1.0), split=False)
        state = {"head.weight": task.head, "head.bias": task.bias}
        for i in range(2):
            down, down_bias, up, up_bias = (
                task.weights[f"blocks.{i}.{part}"] for part in ("down", "down_bias", "up", "up_bias")
            )
            names = {"down.weight": down.T, "down.bias": down_bias, "up.weight": up.T, "up.bias": up_bias}
            state |= {f"blocks.{i}.adapter.{name}": value for name, value in names.items()}
        model.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)
    with torch.inference_mode():
        return np.asarray(model.double().eval()(torch.from_numpy(images).double()).numpy())


@pytest.mark.parametrize("runner", TOLERANCE)
@pytest.mark.parametrize("r", [3, 7])
def test_every_variant_of_a_task_gives_the_logits_of_its_torch_model(
    variants: dict[tuple[str, int], Variant], tasks: dict[int, list[Task]], r: int, runner: RunnerName
) -> None:
    if runner.startswith("openvino"):
        pytest.importorskip("openvino")
        try:
            check_runner(runner)
        except ProviderError as missing:
            pytest.skip(str(missing))
    images = noise(5)

    def check(name: str, bottleneck: int, wanted: Array) -> None:
        given = np.array(variants[name, bottleneck].open(runner, threads=1)(images))
        np.testing.assert_allclose(given, wanted, rtol=0, atol=TOLERANCE[runner] * np.abs(wanted).max())

    own, plain = logits(images, tasks[r][0]), logits(images, None)
    assert np.abs(own - plain).max() > 0.2 * np.abs(own).max()
    for name in ("folded", "unfolded", "shared"):
        check(name, r, own)
    each = [logits(images, task) for task in tasks[r]]
    check("shared-mixed", r, np.stack([each[i % 3][i] for i in range(5)]))
    for name in ("plain", "control"):
        check(name, 0, plain)


def test_a_merged_low_rank_update_keeps_the_nodes_and_adds_rank_16_to_qkv_alone(
    variants: dict[tuple[str, int], Variant],
) -> None:
    plain, lora = variants["plain", 0], variants["lora", 0]
    assert node_types(plain.path) == node_types(lora.path)
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(variant.path).graph.initializer}
        for variant in (plain, lora)
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight"}
    for name in changed:
        update = after[name].astype(np.float64) - before[name]
        assert np.linalg.matrix_rank(update, tol=1e-4) == 16


@pytest.mark.parametrize("name", ["repadapter", "ssf"])
def test_folded_repadapters_and_ssf_keep_the_nodes_and_every_shape_of_plain(
    variants: dict[tuple[str, int], Variant], name: str
) -> None:
    plain, folded = variants["plain", 0], variants[name, 0]
    assert node_types(plain.path) == node_types(folded.path)
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(variant.path).graph.initializer}
        for variant in (plain, folded)
    )
    assert {key: value.shape for key, value in before.items()} == {key: value.shape for key, value in after.items()}
    changed = {key.split(".", 2)[2] for key in before if not np.array_equal(before[key], after[key])}
    places = READERS if name == "repadapter" else SCALED
    assert changed == {f"{place}.{part}" for place in places for part in ("weight", "bias")}
    assert folded.flop_ratio == 1.0


def test_folding_adds_no_node_and_the_unfolded_adapters_do(variants: dict[tuple[str, int], Variant]) -> None:
    nodes = {name: variants[name, 0 if name in ("plain", "lora") else 7].nodes for name in ("plain", "folded", "lora")}
    assert len(set(nodes.values())) == 1
    assert variants["unfolded", 7].nodes > variants["plain", 0].nodes
    assert variants["unfolded", 7].nodes == variants["unfolded", 3].nodes
    assert variants["unfolded", 7].nodes == node_types(variants["unfolded", 7].path).total()


def test_the_size_is_the_files_and_a_shared_graph_brings_its_bank(variants: dict[tuple[str, int], Variant]) -> None:
    plain, shared = variants["plain", 0], variants["shared", 7]
    assert plain.megabytes == pytest.approx(plain.path.stat().st_size / 1e6)
    bank = 3 * 2 * (24 * 7 + 7 + 7 * 24 + 24) * 4
    assert shared.megabytes == pytest.approx((shared.path.stat().st_size + bank) / 1e6)


def vit_products(size: int, patch: int, dim: int, depth: int, hidden: int, classes: int) -> int:
    """Multiply-adds of a ViT with a class token, for one image."""
    patches = (size // patch) ** 2
    tokens = patches + 1
    embedding = patches * (3 * patch * patch) * dim
    qkv, scores, mix, proj = tokens * dim * 3 * dim, tokens * tokens * dim, tokens * tokens * dim, tokens * dim * dim
    fc1, fc2 = tokens * dim * hidden, tokens * hidden * dim
    return embedding + depth * (qkv + scores + mix + proj + fc1 + fc2) + dim * classes


@pytest.mark.parametrize(("dim", "depth", "hidden", "classes"), [(12, 2, 48, 5), (24, 3, 52, 7)])
def test_flops_are_twice_the_products_of_the_formula(dim: int, depth: int, hidden: int, classes: int) -> None:
    model = VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=dim,
        depth=depth,
        num_heads=3,
        mlp_ratio=widened_ratio(hidden, dim),
        num_classes=classes,
    )
    assert flops(model.eval()) == 2 * vit_products(16, 8, dim, depth, hidden, classes)


@pytest.mark.parametrize(("bottleneck", "expected"), [(64, 1.0133), (16, 1.0033)])
def test_vit_b_16_pays_the_predicted_share_for_its_adapter_folded_or_not(bottleneck: int, expected: float) -> None:
    with torch.device("meta"):
        plain = VisionTransformer().eval()
    beside = outline(plain, bottleneck)
    assert flops(beside) / flops(plain) == pytest.approx(expected, abs=0.0005)
    assert flops(fold(beside)) == flops(beside)


def test_the_flop_ratio_of_a_variant_is_that_of_its_bottleneck(variants: dict[tuple[str, int], Variant]) -> None:
    def extra(names: Sequence[str], r: int) -> set[float]:
        return {round((variants[name, r].flop_ratio - 1) / max(r, 1), 12) for name in names}

    assert extra(("plain", "control", "lora", "repadapter", "ssf"), 0) == {0.0}
    (each,) = {*extra(("folded", "unfolded", "shared"), 3), *extra(("folded", "unfolded", "shared-mixed"), 7)}
    assert each > 0


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.1), ("fp16", 2e-3)])
def test_a_variant_in_another_precision_gives_nearly_the_same_logits(
    variants: dict[tuple[str, int], Variant], precision: Precision, error: float
) -> None:
    given, images = [each for (_, r), each in variants.items() if r in (0, 7)], noise(8)
    found = in_precision(given, precision, images)
    assert [each.name for each in found] == [each.name for each in given]
    for before, after in zip(given, found, strict=True):
        assert after.nodes > before.nodes
        exact = np.asarray(before.open("onnxruntime-cpu", 1)(images))
        apart = np.asarray(after.open("onnxruntime-cpu", 1)(images)) - exact
        assert 0 < np.linalg.norm(apart) < error * np.linalg.norm(exact), before.name
        assert len(onnx.load(after.path).SerializeToString()) < len(onnx.load(before.path).SerializeToString())
