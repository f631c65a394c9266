"""Products of an int8 graph that go back to fp32: which are the most harmful, and the graph without them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.intermediate import Feed, Values
from export.smooth import channel_axis, drop_unused

Array = NDArray[np.float32]

DEQUANTISE = "DequantizeLinear"
ROUNDINGS = ("QuantizeLinear", DEQUANTISE)


@dataclass(frozen=True)
class Rounding:
    """What int8 makes of the two factors of a product."""

    scale: float
    zero: int
    steps: tuple[int, int]
    """The smallest and the largest whole number of an activation."""
    weight: Array
    """(in, out), after rounding."""

    @classmethod
    def of(cls, graph: onnx.GraphProto, node: onnx.NodeProto) -> Self:
        """Read it from a quantised graph."""
        constants = {tensor.name: tensor for tensor in graph.initializer}
        made = {name: other for other in graph.node for name in other.output}

        def constant(name: str) -> NDArray[Any]:
            return numpy_helper.to_array(constants[name])

        (scale, zero), source = map(constant, made[node.input[0]].input[1:3]), made[node.input[1]]
        whole, weight_scale, weight_zero = map(constant, source.input[:3])
        axis = next((own.i for own in source.attribute if own.name == "axis"), 1) % whole.ndim
        shape = [-1 if each == axis else 1 for each in range(whole.ndim)]
        weight = (whole.astype(np.float32) - weight_zero.reshape(shape)) * weight_scale.reshape(shape)
        limits = np.iinfo(zero.dtype)
        return cls(float(scale), int(zero), (limits.min, limits.max), weight.T if channel_axis(node) else weight)

    def activation(self, x: Array) -> Array:
        """An activation after rounding."""
        steps = np.clip(np.rint(x / self.scale) + self.zero, *self.steps)
        return np.asarray((steps - self.zero) * self.scale, dtype=np.float32)


def most_harmful(model: onnx.ModelProto, quantised: onnx.ModelProto, feeds: Iterable[Feed]) -> list[str]:
    """The names of the quantised products; first the one whose output int8 changes most on these inputs.

    The measure is |y' - y|^2 / |y|^2, with y the product in fp32 and y' that of the rounded factors. `model` is the
    graph that was quantised.
    """
    roundings = {node.name: Rounding.of(quantised.graph, node) for node in quantised_products(quantised)}
    products = {node.name: node for node in model.graph.node if node.name in roundings}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    values = Values(model, sorted({node.input[0] for node in products.values()}))
    changed, whole = dict.fromkeys(products, 0.0), dict.fromkeys(products, 0.0)
    for feed in feeds:
        inputs = values.of(feed)
        for name, node in products.items():
            weight = numpy_helper.to_array(weights[node.input[1]])
            x = inputs[node.input[0]].reshape(-1, inputs[node.input[0]].shape[-1])
            y = x @ (weight.T if channel_axis(node) else weight)
            rounded = roundings[name].activation(x) @ roundings[name].weight
            changed[name] += float(np.square(rounded - y).sum(dtype=np.float64))
            whole[name] += float(np.square(y).sum(dtype=np.float64))
    return sorted(products, key=lambda name: changed[name] / (whole[name] or 1.0), reverse=True)


def quantised_products(quantised: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The products whose factors are rounded."""
    rounded = {name for node in quantised.graph.node if node.op_type == DEQUANTISE for name in node.output}
    return [
        node for node in quantised.graph.node if node.op_type not in ROUNDINGS and rounded.issuperset(node.input[:2])
    ]


def in_fp32(model: onnx.ModelProto, quantised: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The quantised graph with these products as they are in `model`, which was quantised."""
    mixed = onnx.ModelProto()
    mixed.CopyFrom(quantised)
    graph, before = mixed.graph, {node.name: node for node in model.graph.node if node.name in names}
    for node in graph.node:
        if node.name in before:
            node.input[:] = before[node.name].input
    missing = {name for node in before.values() for name in node.input} - {own.name for own in graph.initializer}
    constants = [own for own in model.graph.initializer if own.name in missing]
    graph.initializer.extend(constants)
    needed, kept = {entry.name for entry in graph.output}, list[onnx.NodeProto]()
    # A bias that was rounded still has its name, as the output of a node.
    restored = {own.name for own in constants}
    for node in reversed(graph.node):
        if needed.intersection(node.output) and restored.isdisjoint(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    drop_unused(mixed)
    return mixed
