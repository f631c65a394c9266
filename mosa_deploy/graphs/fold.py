"""Fold with numpy alone: a task's adapter weights, or its own parameters, replace parameters of the backbone's graph.

`mosa_deploy.adapters` states the formulas. Both are written independently, so that each checks the other.
"""

import math
from collections.abc import Callable

import numpy as np
import onnx

from mosa_deploy.bundles.adapter_config import Method
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.ownership import owns
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import BundleError
from mosa_deploy.graphs.adapter_weights import PARTS, AdapterWeights, Double, adapter_weights
from mosa_deploy.graphs.backbone_graph import PlainGraph
from mosa_deploy.graphs.probe import probe_graph
from mosa_deploy.utils.affine import absorb_norm
from mosa_deploy.utils.shapes import shape_faults, shapes_of

Parameters = dict[str, Array]

TABLE = ".relative_position_bias_table"
"""How timm's names of a Swin's position biases end."""

LAYER_SCALES = ("ls2.gamma", "gamma_2")
"""What timm's ViT and its Eva call the LayerScale of a block's FFN."""


def fold_bundle(graph: PlainGraph, bundle: Bundle) -> onnx.ModelProto:
    """The graph of one task: images (B, 3, H, W) -> logits (B, K), node for node the backbone's graph.

    A probe that reads more than timm's head has nodes of its own after the blocks.

    Raises:
        BundleError: see `fold_parameters`.
    """
    if bundle.record.features != "cls":
        check_backbone(graph, bundle)
        return probe_graph(graph, bundle)
    return graph.replaced(fold_parameters(graph, bundle))


def check_backbone(graph: PlainGraph, bundle: Bundle) -> None:
    """Raises BundleError unless the task was tuned on the graph's backbone."""
    record = bundle.record
    if record.backbone.sha256 != graph.index.backbone:
        raise BundleError(
            f"'{record.task}' was tuned on {record.backbone.folder}, but the graph's backbone is"
            f" {graph.index.backbone[:8]}:"
            " export the task with its own backbone"
        )


def fold_parameters(graph: PlainGraph, bundle: Bundle) -> Parameters:
    """The parameters in which a task's graph differs from the backbone's, under timm's names.

    Raises:
        BundleError: the task was tuned on another backbone, tunes the backbone itself but has other parameters than
            the graph, or has sequential adapters.
    """
    check_backbone(graph, bundle)
    if bundle.record.tunes_backbone:
        own = as_traced({name: value.astype(np.float32) for name, value in bundle.tensors.items()})
        check_complete(graph, own, bundle.record.method)
        return own
    return head_parameters(graph, *bundle.head) | fold_adapter(graph, adapter_weights(bundle))


def head_parameters(graph: PlainGraph, weight: Array, bias: Array) -> Parameters:
    """A classifier, weight (K, C) and bias (K,), under the names that the graph has for it."""
    return {f"{graph.index.topology.head}.weight": weight, f"{graph.index.topology.head}.bias": bias}


def check_complete(graph: PlainGraph, own: Parameters, method: Method) -> None:
    """Raises BundleError unless `own` has all that a task of this method owns in the graph; the head may be any."""
    topology = graph.index.topology
    names = (name for name in graph.index.parameters if owns(method, name, topology))
    expected = {name: graph.parameter(name).shape for name in names}
    expected |= {name: own[name].shape for name in (f"{topology.head}.weight", f"{topology.head}.bias")}
    faults = shape_faults(expected, shapes_of(own))
    if faults:
        raise BundleError(f"the tuned parameters do not fit the backbone's graph: {faults}")


def as_traced(own: Parameters) -> Parameters:
    """The same by the names of the graph, where these are not timm's.

    Raises:
        BundleError: see `gather_windows`.
    """
    return join_biases(gather_windows(own))


def join_biases(own: Parameters) -> Parameters:
    """The same with the biases of q and v of an Eva as its graph has them: one of qkv, in which k has zeros."""
    joined = dict(own)
    for name in [name for name in own if name.endswith(".attn.q_bias")]:
        attention = name.removesuffix(".q_bias")
        query, value = joined.pop(name), joined.pop(f"{attention}.v_bias")
        joined[f"{attention}.qkv.bias"] = np.concatenate([query, np.zeros_like(query), value])
    return joined


def gather_windows(own: Parameters) -> Parameters:
    """The same with a Swin's tables of position biases as its graph has them, gathered.

    For a window of W x W tokens, a table ((2W - 1)^2, heads) has a row for each offset between two of them; gathered it
    is (1, heads, W^2, W^2). timm's windows are square, but for images of other shapes.

    Raises:
        BundleError: a window is not square.
    """
    gathered = dict(own)
    for name in [name for name in own if name.endswith(TABLE)]:
        table = gathered.pop(name)
        offsets = math.isqrt(len(table))
        if offsets**2 != len(table):
            raise BundleError(f"{name} is of a window that is not square: tune on square images")
        side = (offsets + 1) // 2
        row, column = np.divmod(np.arange(side**2), side)
        down, right = (place[:, None] - place + side - 1 for place in (row, column))
        gathered[name.removesuffix("_table")] = table[down * offsets + right].transpose(2, 0, 1)[None]
    return gathered


def fold_adapter(graph: PlainGraph, weights: AdapterWeights) -> Parameters:
    """The parameters that a task's adapter weights change; none for a linear task.

    Raises:
        BundleError: a layer has no bias to take in what a task adds.
    """
    places: dict[str, set[str]] = {}
    for name in weights:
        place, _, part = name.rpartition(".")
        places.setdefault(place, set()).add(part)
    folded: Parameters = {}
    for place, parts in places.items():
        folded |= FOLDS[frozenset(parts)](graph, place, weights)
    return folded


def fold_low_rank(graph: PlainGraph, layer: str, weights: AdapterWeights) -> Parameters:
    """A layer with a low-rank update: W' = W + (down up)^T."""
    down, up = (weights[f"{layer}.{part}"].astype(np.float64) for part in ("down", "up"))
    weight = graph.parameter(f"{layer}.weight").astype(np.float64)
    return {f"{layer}.weight": (weight + (down @ up).T).astype(np.float32)}


def fold_before(graph: PlainGraph, layer: str, weights: AdapterWeights) -> Parameters:
    """A layer that reads x + (x down) up + bias: W' = W + (W up^T) down^T, b' = b + W bias."""
    down, up, bias = (weights[f"{layer}.{part}"].astype(np.float64) for part in ("down", "up", "bias"))
    weight = graph.parameter(f"{layer}.weight").astype(np.float64)
    whole = (weight + (weight @ up.T) @ down.T).astype(np.float32)
    return {f"{layer}.weight": whole} | _moved_bias(graph, layer, np.ones(len(weight)), weight @ bias)


def fold_after(graph: PlainGraph, layer: str, weights: AdapterWeights) -> Parameters:
    """A layer whose result y becomes (1 + scale) y + shift: its weight and bias do so."""
    scale, shift = (weights[f"{layer}.{part}"].astype(np.float64) for part in ("scale", "shift"))
    weight = graph.parameter(f"{layer}.weight").astype(np.float64)
    whole = ((1 + scale) * weight.T).T.astype(np.float32)
    return {f"{layer}.weight": whole} | _moved_bias(graph, layer, 1 + scale, shift)


def _moved_bias(graph: PlainGraph, layer: str, factor: Double, shift: Double) -> Parameters:
    """The bias of a layer, multiplied and shifted; a layer without one takes no shift but zeros."""
    name = f"{layer}.bias"
    if name in graph.index.parameters:
        return {name: (factor * graph.parameter(name).astype(np.float64) + shift).astype(np.float32)}
    if shift.any():
        raise BundleError(f"{layer} has no bias, so it cannot take in what the task adds: tune the task again")
    return {}


def fold_block(graph: PlainGraph, block: str, weights: AdapterWeights) -> Parameters:
    """The FFN of one block, widened from M to M + r by the task's adapter, with norm2 and LayerScale absorbed."""
    names = ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "norm2.weight", "norm2.bias")
    fc1, bias1, fc2, bias2, gain, shift = (graph.parameter(f"{block}.{name}").astype(np.float64) for name in names)
    down, down_bias, up, up_bias = (weights[f"{block}.{part}"] for part in ("down", "down_bias", "up", "up_bias"))
    fc1, bias1 = absorb_norm(fc1, bias1, gain, shift)
    gammas = [f"{block}.{name}" for name in LAYER_SCALES if f"{block}.{name}" in graph.index.parameters]
    layer_scale = graph.parameter(gammas[0]).astype(np.float64) if gammas else np.ones_like(gain)
    values = (
        np.concatenate([fc1, down.T]),
        np.concatenate([bias1, down_bias]),
        np.concatenate([layer_scale[:, None] * fc2, up.T], axis=1),
        layer_scale * bias2 + up_bias,
        np.ones_like(gain),
        np.zeros_like(shift),
    )
    folded = {f"{block}.{name}": value.astype(np.float32) for name, value in zip(names, values, strict=True)}
    return folded | {gamma: np.ones_like(gain, dtype=np.float32) for gamma in gammas}


Fold = Callable[[PlainGraph, str, AdapterWeights], Parameters]

FOLDS: dict[frozenset[str], Fold] = {
    frozenset(PARTS): fold_block,
    frozenset(("down", "up")): fold_low_rank,
    frozenset(("down", "up", "bias")): fold_before,
    frozenset(("scale", "shift")): fold_after,
}
"""The weights that a task has in one place of the backbone -> what folds them there."""
