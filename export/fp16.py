"""fp16: weights and activations of a graph in half precision, except for sensitive operations, which stay in fp32."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxconverter_common import float16

from export.intermediate import open_with_outputs
from mosa_deploy.errors import ParityError

KEPT_IN_FP32 = ("LayerNormalization", "Softmax", "GatherND")
"""Norm and softmax sum many terms, which is too inaccurate in fp16. Gathering stays in fp32 so that banks are gathered
before they are cast: otherwise every run would cast the whole bank, not only the rows of its samples."""

LARGEST = 65504.0
SMALLEST = 1e-7

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in fp16, with inputs and outputs in fp32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # The converter trusts the recorded shapes, so they are inferred again.
    del copy.graph.value_info[:]
    with warnings.catch_warnings():
        # It warns of every weight below the smallest fp16 number; these may become zero.
        warnings.simplefilter("ignore")
        converted: onnx.ModelProto = float16.convert_float_to_float16(
            onnx.shape_inference.infer_shapes(copy, strict_mode=True),
            min_positive_val=SMALLEST,
            max_finite_val=LARGEST,
            keep_io_types=True,
            disable_shape_infer=True,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *KEPT_IN_FP32],
        )
    return converted


def require_finite(name: str, file: Path, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> None:
    """Check that every intermediate value of a converted file is finite for these inputs.

    On the CPU, ONNX Runtime multiplies in fp32 and may skip the rounding between two products. A file that overflows on
    a GPU can then give correct outputs. Therefore every intermediate value is rounded and checked.

    Raises:
        ParityError: a value is NaN or infinity; names the first node that produces one.
    """
    watch = Watch(onnx.load(file))
    for feed in feeds:
        node = watch.first_non_finite(feed)
        if node is not None:
            raise ParityError(
                f"{name}: {node} makes NaN or infinity after the conversion; the store keeps what it had. Leave this"
                " precision out of --precision"
            )


class Watch:
    """A session of a graph that outputs every intermediate floating-point value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes, self.weights = model.graph.node, {tensor.name for tensor in model.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(model).graph
        types = {entry.name: entry.type.tensor_type.elem_type for entry in (*inferred.value_info, *inferred.output)}
        self.values = [name for node in self.nodes for name in node.output if types.get(name) in FLOATS]
        # Optimisation could remove the node that should be named.
        self.session = open_with_outputs(model, {name: types[name] for name in self.values}, optimise=False)

    def first_non_finite(self, feed: Mapping[str, NDArray[Any]]) -> str | None:
        """The first node in graph order with a non-finite output, with its type and weights; None if all are finite."""
        values = dict(zip(self.values, self.session.run(self.values, dict(feed)), strict=True))
        for node in self.nodes:
            if any(not np.isfinite(values[name]).all() for name in node.output if name in values):
                own = [name for name in node.input if name in self.weights]
                return f"node {node.name} ({', '.join([node.op_type, *own])})"
        return None
