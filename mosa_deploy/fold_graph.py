"""Merge and fold with numpy alone: a bundle's tensors go into the plain backbone's graph.

The formulas are those of `mosa_deploy.merge` and `mosa_deploy.fold`; sums are carried in float64.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from mosa_deploy.bundle import Bundle, Tensors
from mosa_deploy.config import AdapterConfig
from mosa_deploy.errors import BundleError
from mosa_deploy.graph import PlainGraph
from mosa_deploy.preprocess import Array

Parameters = dict[str, Array]


def fold(graph: PlainGraph, bundle: Bundle) -> onnx.ModelProto:
    """The graph of one task: images (B, 3, H, W) -> logits (B, K), with the plain graph's nodes.

    Raises:
        BundleError: the task was tuned on another backbone.
    """
    return graph.replaced(fold_parameters(graph, bundle))


def fold_parameters(graph: PlainGraph, bundle: Bundle) -> Parameters:
    """The parameters in which a task's graph differs from the plain one, by timm's names."""
    record = bundle.record
    if record.backbone.sha256 != graph.index.backbone:
        raise BundleError(
            f"'{record.task}' was tuned on {record.backbone.folder}, this graph is of {graph.index.backbone[:8]}:"
            " export the task with its own backbone"
        )
    head: Parameters = {name: bundle.tensors[name].astype(np.float32) for name in ("head.weight", "head.bias")}
    if record.adapter is None:
        return head
    tensors = merged(bundle.tensors, record.adapter)
    for i in range(record.backbone.depth):
        head |= fold_block(graph, f"blocks.{i}", tensors, record.adapter.scale)
    return head


def merged(tensors: Tensors, config: AdapterConfig) -> Tensors:
    """The tensors of complete adapters: W0 + m * Delta and the mean of the biases, where experts are still apart."""
    scale = 1 / config.experts if config.merge_scale is None else config.merge_scale
    whole = {name: value for name, value in tensors.items() if not name.endswith((".owner", ".base"))}
    for name in tensors:
        if name.endswith(".base"):
            layer = name.removesuffix(".base")
            base, delta = (tensors[f"{layer}.{part}"].astype(np.float64) for part in ("base", "weight"))
            whole[f"{layer}.weight"] = base + scale * delta
            whole[f"{layer}.bias"] = tensors[f"{layer}.bias"].astype(np.float64).mean(axis=0)
    return whole


def fold_block(graph: PlainGraph, block: str, tensors: Tensors, scale: float) -> Parameters:
    """The folded feed-forward part of one block, see `mosa_deploy.fold`."""
    backbone = {
        name: graph.parameter(f"{block}.{name}").astype(np.float64)
        for name in ("norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
    }
    down_weight, down_bias = absorb_norm(tensors, f"{block}.adapter.down", f"{block}.adapter.norm")
    fc1_weight, fc1_bias = absorb_norm(backbone, "mlp.fc1", "norm2")
    gamma = f"{block}.ls2.gamma"
    layer_scale = graph.parameter(gamma).astype(np.float64) if gamma in graph.index.parameters else np.ones(1)
    up_weight, up_bias = (tensors[f"{block}.adapter.up.{part}"].astype(np.float64) for part in ("weight", "bias"))
    folded = {
        f"{block}.mlp.fc1.weight": np.concatenate([fc1_weight, down_weight]),
        f"{block}.mlp.fc1.bias": np.concatenate([fc1_bias, down_bias]),
        f"{block}.mlp.fc2.weight": np.concatenate(
            [layer_scale[:, None] * backbone["mlp.fc2.weight"], scale * up_weight], axis=1
        ),
        f"{block}.mlp.fc2.bias": layer_scale * backbone["mlp.fc2.bias"] + scale * up_bias,
        f"{block}.norm2.weight": np.ones_like(backbone["norm2.weight"]),
        f"{block}.norm2.bias": np.zeros_like(backbone["norm2.bias"]),
    }
    if gamma in graph.index.parameters:
        folded[gamma] = np.ones_like(layer_scale)
    return {name: value.astype(np.float32) for name, value in folded.items()}


def absorb_norm(tensors: Mapping[str, np.ndarray], layer: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight (out, C) and bias (out,) of `layer` as if `norm` had no affine: W diag(g) and b + W be."""
    weight, bias, gain, shift = (
        tensors[name].astype(np.float64)
        for name in (f"{layer}.weight", f"{layer}.bias", f"{norm}.weight", f"{norm}.bias")
    )
    return weight * gain, bias + weight @ shift
