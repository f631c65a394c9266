"""A task's rows: what its merged adapter adds to every block, with numpy alone.

The folded lane appends them to the FFN's weights (`mosa_deploy.fold_graph`), the shared lane keeps them in banks
(`mosa_deploy.bank`). With s the scale and ga, bea the affine of the adapter's norm, for block i:

    blocks.<i>.down       (C, r)   [ D diag(ga) ]^T        blocks.<i>.up       (r, C)   [ s U ]^T
    blocks.<i>.down_bias  (r,)     d + D bea               blocks.<i>.up_bias  (C,)     s u

Sums are carried in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.config import AdapterConfig

if TYPE_CHECKING:
    # Only named: the shared graph reads `PARTS` where there is no pydantic.
    from mosa_deploy.bundle import Bundle, Tensors

Array = NDArray[np.float32]
Double = NDArray[np.float64]

PARTS = ("down", "down_bias", "up", "up_bias")

Rows = Mapping[str, Array]


def task_rows(bundle: Bundle) -> dict[str, Array]:
    """The rows of a task, its experts merged; a linear task has none."""
    record = bundle.record
    if record.adapter is None:
        return {}
    tensors, scale = merged(bundle.tensors, record.adapter), record.adapter.scale
    rows: dict[str, Double] = {}
    for i in range(record.backbone.depth):
        adapter = f"blocks.{i}.adapter"
        weight, bias, up, up_bias = (
            tensors[f"{adapter}.{name}"].astype(np.float64)
            for name in ("down.weight", "down.bias", "up.weight", "up.bias")
        )
        weight, bias = absorb_norm(weight, bias, tensors[f"{adapter}.norm.weight"], tensors[f"{adapter}.norm.bias"])
        parts = (weight.T, bias, scale * up.T, scale * up_bias)
        rows |= {f"blocks.{i}.{part}": value for part, value in zip(PARTS, parts, strict=True)}
    return {name: value.astype(np.float32) for name, value in rows.items()}


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


def absorb_norm(
    weight: Double, bias: Double, gain: NDArray[np.generic], shift: NDArray[np.generic]
) -> tuple[Double, Double]:
    """Weight (out, C) and bias (out,) of a layer as if the norm before it had no affine: W diag(g) and b + W be."""
    return weight * gain.astype(np.float64), bias + weight @ shift.astype(np.float64)
