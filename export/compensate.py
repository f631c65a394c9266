"""Compensated rounding: each row of a weight makes up for what rounding did to the rows before it (GPTQ).

Rounding to the nearest step takes every weight by itself. GPTQ (arXiv 2210.17323) rounds one input channel after the
other, and changes the rows that are not yet rounded so that the product changes least on calibration inputs. With X
(n, in) the rounded activations, W (in, out) the weight in fp32, s (out,) its steps, and U the upper triangle of

    (X^T X + lambda I)^-1 = U^T U        lambda = 0.01 * mean diagonal of X^T X

for k = 1 ... in:

    q_k = round(W_k / s)        W_j = W_j - U_kj / U_kk * (W_k - s q_k)        for every j > k

The steps stay those of ONNX Runtime, and so does the graph: other whole numbers cost nothing when it runs. ONNX Runtime
itself has GPTQ for weights of four bits alone.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.linalg.lapack import dtrtri

from export.intermediate import Feed, Values
from export.left_out import Rounding, quantised_products
from export.smooth import channel_axis

DAMPING = 0.01

TOGETHER = 1280 << 20
"""The most bytes of the matrices X^T X that are in memory at once; the inputs are run again for the next ones. Those of
a ViT-B fit."""

ROWS = 64
"""Rows that are rounded before the rest is changed, which makes one matrix product of it."""

Doubles = NDArray[np.float64]


def compensate(model: onnx.ModelProto, quantised: onnx.ModelProto, feeds: Sequence[Feed]) -> onnx.ModelProto:
    """The quantised graph with the weights of its products rounded so. `model` is the graph that was quantised."""
    compensated = onnx.ModelProto()
    compensated.CopyFrom(quantised)
    graph = compensated.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = {node.name: node for node in quantised_products(compensated)}
    for node, gram in grams(model, quantised, feeds):
        whole, step, *_ = made[readers[node.name].input[1]].input
        across = channel_axis(node) == 1
        before = numpy_helper.to_array(constants[whole])
        weight = numpy_helper.to_array(weights[node.input[1]])
        limit = int(np.abs(before.astype(np.int64)).max())
        rounded = rounded_rows(weight.T if across else weight, numpy_helper.to_array(constants[step]), gram, limit)
        after = np.ascontiguousarray(rounded.T if across else rounded).astype(before.dtype)
        constants[whole].CopyFrom(numpy_helper.from_array(after, whole))
    return compensated


def grams(
    model: onnx.ModelProto, quantised: onnx.ModelProto, feeds: Sequence[Feed]
) -> Iterator[tuple[onnx.NodeProto, Doubles]]:
    """Every quantised product with X^T X (in, in) of its rounded activations X."""
    roundings = {node.name: Rounding.of(quantised.graph, node) for node in quantised_products(quantised)}
    products = [node for node in model.graph.node if node.name in roundings]
    for some in batched(products, [roundings[node.name].weight.shape[0] for node in products]):
        values = Values(model, sorted({node.input[0] for node in some}))
        widths = {node.name: roundings[node.name].weight.shape[0] for node in some}
        found = {name: np.zeros((width, width), dtype=np.float64) for name, width in widths.items()}
        for feed in feeds:
            inputs = values.of(feed)
            for node in some:
                x = roundings[node.name].activation(inputs[node.input[0]].reshape(-1, inputs[node.input[0]].shape[-1]))
                found[node.name] += x.T @ x
        for node in some:
            yield node, found.pop(node.name)


def batched(products: Iterable[onnx.NodeProto], widths: Iterable[int]) -> Iterator[list[onnx.NodeProto]]:
    """Products whose matrices fit into memory together, but at least one."""
    some, held = list[onnx.NodeProto](), 0
    for node, width in zip(products, widths, strict=True):
        if some and held + 8 * width**2 > TOGETHER:
            yield some
            some, held = [], 0
        some.append(node)
        held += 8 * width**2
    yield some


def rounded_rows(weight: NDArray[np.float32], step: NDArray[np.float32], gram: Doubles, limit: int) -> Doubles:
    """Whole numbers (in, out) from -limit to limit for a weight (in, out), see above."""
    left, steps = weight.astype(np.float64), step.astype(np.float64)
    count = len(left)
    damping = DAMPING * (np.trace(gram) / count or 1.0)
    upper = inverse_factor(gram + damping * np.eye(count))
    rounded = np.empty_like(left)
    for start in range(0, count, ROWS):
        end = min(start + ROWS, count)
        errors = np.empty_like(left[start:end])
        for k in range(start, end):
            rounded[k] = np.clip(np.rint(left[k] / steps), -limit, limit)
            errors[k - start] = (left[k] - steps * rounded[k]) / upper[k, k]
            left[k + 1 : end] -= np.outer(upper[k, k + 1 : end], errors[k - start])
        left[end:] -= upper[start:end, end:].T @ errors
    return rounded


def inverse_factor(matrix: Doubles) -> Doubles:
    """U of M^-1 = U^T U, with U upper triangular, for a positive definite M (n, n).

    With L L^T = M in the reverse order of rows and columns, L^-1 in the reverse order is U. That takes a third of the
    operations of M^-1 and its factor.
    """
    inverse, _ = dtrtri(np.linalg.cholesky(matrix[::-1, ::-1]), lower=1)
    return np.ascontiguousarray(inverse[::-1, ::-1])
