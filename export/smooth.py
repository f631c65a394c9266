"""Smoothing: divide the channels of tokens by powers of two where int8 would lose the small ones beside a large one.

Foundation models have a few channels that are hundreds of times as large as the others. One range for all channels,
as integer kernels need, leaves those others no steps. SmoothQuant (arXiv 2211.10438) moves the difference into the
weights, which have ranges of their own. Where every reader of a LayerNorm's output x is a matrix product,

    x' = x / s     by the norm's gain and shift       W' = diag(s) W     in every product, also in a bank's `down`

With a_j the largest |x_j| on calibration images, w_j the largest |W_jk| of the constant weights, and alpha = 1/2:

    s_j = 2^k_j    k_j = log2( a_j^alpha / w_j^(1 - alpha) ), less the median over j, rounded

A power of two changes exponents alone, so the graph computes the same in fp32, to the last bit. What fc2 and the
projection of attention read does not come from a norm, and stays as it is.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.intermediate import Feed, Values
from mosa_deploy.bundles.graph_index import Exponents

NORM = "LayerNormalization"
PRODUCTS = ("MatMul", "Gemm")
GATHERS = ("GatherND", "Gather")

ALPHA = 0.5

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Smoothable:
    """A LayerNorm whose output is read by matrix products alone."""

    norm: str
    """The name of its node."""
    output: str
    products: tuple[str, ...]
    """The nodes that multiply its output by a constant weight."""
    banks: tuple[str, ...]
    """The inputs of the graph that its output is multiplied by, each gathered by slot."""


@dataclass(frozen=True)
class Smoothed:
    """A smoothed graph, and the scales for the banks that it reads."""

    model: onnx.ModelProto
    exponents: Exponents


def smooth(model: onnx.ModelProto, feeds: Iterable[Feed]) -> Smoothed:
    """The graph with every norm smoothed that can be, by the largest activations on calibration inputs."""
    norms = smoothable(model)
    largest = largest_values(model, [norm.output for norm in norms], feeds)
    found = {norm.norm: exponents(largest[norm.output], largest_weights(model, norm)) for norm in norms}
    scaled = scale_channels(model, norms, found)
    return Smoothed(scaled, {bank: tuple(found[norm.norm].tolist()) for norm in norms for bank in norm.banks})


def smoothable(model: onnx.ModelProto) -> list[Smoothable]:
    """The norms of a graph that can be smoothed, in the graph's order."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    kept = {entry.name for entry in graph.output}
    users = defaultdict(list)
    for node in graph.node:
        for place, name in enumerate(node.input):
            users[name].append((node, place))
    gathered = {node.output[0]: node.input[0] for node in graph.node if node.op_type in GATHERS}
    banks = {entry.name for entry in graph.input}
    found = []
    for norm in (node for node in graph.node if node.op_type == NORM):
        readers = users[norm.output[0]]
        if norm.output[0] in kept or not weights.issuperset(norm.input[1:]):
            continue
        if not all(place == 0 and node.op_type in PRODUCTS for node, place in readers):
            continue
        products = [node.name for node, _ in readers if node.input[1] in weights and len(users[node.input[1]]) == 1]
        sources = [gathered.get(node.input[1]) for node, _ in readers]
        read = tuple(name for name in sources if name is not None and name in banks)
        if products and len(products) + len(read) == len(readers):
            found.append(Smoothable(norm.name, norm.output[0], tuple(products), read))
    return found


def largest_values(model: onnx.ModelProto, names: list[str], feeds: Iterable[Feed]) -> dict[str, NDArray[np.float32]]:
    """Name -> the largest absolute value of each channel, which is the last axis."""
    values, largest = Values(model, names), dict[str, NDArray[np.float32]]()
    for feed in feeds:
        for name, value in values.of(feed).items():
            own = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest[name], own) if name in largest else own
    return largest


def largest_weights(model: onnx.ModelProto, norm: Smoothable) -> NDArray[np.float32]:
    """The largest absolute weight that each channel is multiplied by in the constant products."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in (node for node in model.graph.node if node.name in norm.products):
        weight = np.abs(numpy_helper.to_array(tensors[node.input[1]]))
        found.append(weight.max(axis=1 - channel_axis(node)))
    largest: NDArray[np.float32] = np.max(found, axis=0)
    return largest


def exponents(activations: NDArray[np.float32], weights: NDArray[np.float32]) -> Integers:
    """K of each channel; a channel that is never read or always zero keeps its size."""
    with np.errstate(divide="ignore"):
        wanted = ALPHA * np.log2(activations.astype(np.float64)) - (1 - ALPHA) * np.log2(weights.astype(np.float64))
    used = np.isfinite(wanted)
    if not used.any():
        return np.zeros(len(wanted), dtype=np.int64)
    return np.where(used, np.rint(np.where(used, wanted, 0) - np.median(wanted[used])), 0).astype(np.int64)


def scale_channels(
    model: onnx.ModelProto, norms: Iterable[Smoothable], found: Mapping[str, Integers]
) -> onnx.ModelProto:
    """A copy in which the output of each norm is divided by 2^k, and the weights that read it are multiplied by it."""
    scaled = onnx.ModelProto()
    scaled.CopyFrom(model)
    graph = scaled.graph
    tensors, nodes = {tensor.name: tensor for tensor in graph.initializer}, {node.name: node for node in graph.node}
    for norm in norms:
        factors = np.exp2(found[norm.norm].astype(np.float32))
        node = nodes[norm.norm]
        for place in range(1, len(node.input)):
            # Norms without an affine of their own share one constant.
            name = f"{norm.norm}.{'gain' if place == 1 else 'shift'}"
            own = numpy_helper.to_array(tensors[node.input[place]]) / factors
            graph.initializer.append(numpy_helper.from_array(own.astype(np.float32), name))
            node.input[place] = name
        for product in (nodes[name] for name in norm.products):
            tensor = tensors[product.input[1]]
            weight = numpy_helper.to_array(tensor)
            rows = factors[:, None] if channel_axis(product) == 0 else factors
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weight * rows), tensor.name))
    drop_unused(scaled)
    return scaled


def channel_axis(node: onnx.NodeProto) -> int:
    """The axis of a product's weight along which its input's channels lie."""
    attributes: dict[str, Any] = {own.name: helper.get_attribute_value(own) for own in node.attribute}
    return int(attributes.get("transB", 0))


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove the constants that no node reads."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
