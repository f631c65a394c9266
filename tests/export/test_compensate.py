"""Rounding that compensates changes a product less than rounding to the nearest step, and nothing else."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from export import compensate as module
from export.compensate import DAMPING, compensate, inverse_factor, rounded_rows
from export.int8 import to_int8
from export.left_out import quantised_products
from mosa_deploy.runtimes.names import Quantisation
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from tests.support.graphs import noise

FEEDS = [{"images": noise(count)} for count in (8, 9, 10, 11)]

LIMIT = 7


def best_rows(weight: NDArray[np.float64], step: NDArray[np.float64], gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round row after row; those not yet rounded are each time the least-squares best for those that are."""
    damped = gram + DAMPING * np.trace(gram) / len(gram) * np.eye(len(gram))
    rounded = np.zeros_like(weight)
    for k in range(len(weight)):
        lost = weight[:k] - step * rounded[:k]
        best = weight[k:] + np.linalg.solve(damped[k:, k:], damped[k:, :k] @ lost)
        rounded[k] = np.clip(np.rint(best[0] / step), -LIMIT, LIMIT)
    return rounded


def test_the_factor_of_the_inverse_is_upper_triangular() -> None:
    x = np.random.default_rng(0).standard_normal((40, 12))
    upper = inverse_factor(x.T @ x)
    np.testing.assert_allclose(upper.T @ upper, np.linalg.inv(x.T @ x), rtol=1e-9, atol=1e-12)
    assert not np.tril(upper, -1).any()


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_every_row_is_the_least_squares_best_for_the_rows_before(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 12)) @ rng.standard_normal((12, 12))
    weight = rng.standard_normal((12, 6)).astype(np.float32)
    step = np.abs(weight).max(axis=0) / LIMIT
    found = rounded_rows(weight, step, x.T @ x, LIMIT)
    np.testing.assert_array_equal(found, best_rows(weight.astype(np.float64), step.astype(np.float64), x.T @ x))
    nearest = np.rint(weight / step)
    assert np.square(x @ (weight - step * found)).sum() < np.square(x @ (weight - step * nearest)).sum()


def test_an_input_that_is_always_zero_is_rounded_to_the_nearest() -> None:
    weight = np.array([[0.3], [0.8]], dtype=np.float32)
    assert rounded_rows(weight, np.array([0.5], dtype=np.float32), np.zeros((2, 2)), LIMIT).tolist() == [[1], [2]]


@pytest.mark.parametrize("quantisation", ["cpu", "tensorrt"])
@pytest.mark.parametrize("together", [1, 1 << 30])
def test_a_graph_differs_less_from_fp32_and_in_whole_numbers_alone(
    traced: Path, tmp_path: Path, quantisation: Quantisation, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOGETHER", together)
    model = onnx.load(traced / "plain.onnx")
    nearest = to_int8(model, FEEDS, quantisation)
    found = compensate(model, nearest, FEEDS)
    assert found.graph.node == nearest.graph.node
    assert len(quantised_products(found)) == len(quantised_products(nearest))
    pairs = list(zip(found.graph.initializer, nearest.graph.initializer, strict=True))
    changed = [(after, before) for after, before in pairs if after != before]
    assert changed
    for after, before in changed:
        new, old = numpy_helper.to_array(after), numpy_helper.to_array(before)
        assert (new.dtype.name, new.shape) == ("int8", old.shape)
        assert np.abs(new.astype(int)).max() <= np.abs(old.astype(int)).max()
    expected, *answers = (answer(graph, tmp_path) for graph in (model, nearest, found))
    by_nearest, compensated = (float(np.square(each - expected).sum()) for each in answers)
    assert compensated < 0.9 * by_nearest


def answer(graph: onnx.ModelProto, folder: Path) -> NDArray[np.float32]:
    """The logits of images that no weight was rounded on."""
    onnx.save(graph, folder / "graph.onnx")
    return OnnxRunner(folder / "graph.onnx", threads=1).run(noise(32))
