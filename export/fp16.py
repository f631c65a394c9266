"""fp16: weights and activations of a graph in half precision, what is delicate in fp32."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxconverter_common import float16

from mosa_deploy.errors import ParityError
from mosa_deploy.runtimes.names import EXECUTION_PROVIDERS

KEPT_IN_FP32 = ("LayerNormalization", "Softmax", "GatherND")
"""Norm and softmax sum many terms, which fp16 cannot. Banks are gathered before they are cast: the other way round
every run would cast the whole bank, and not the rows of its samples."""

LARGEST = 65504.0
SMALLEST = 1e-7

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in fp16, its inputs and outputs still in fp32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # The converter trusts what is written of the shapes; only fresh ones are right.
    del copy.graph.value_info[:]
    with warnings.catch_warnings():
        # It tells of every weight below fp16's smallest number, which is as good as zero.
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
    """Refuse a converted file in which a value is not finite for one of these inputs.

    ONNX Runtime multiplies in fp32 on the CPU and may leave out the rounding between two products, so that a file which
    overflows on a GPU looks well by its output: every value is looked at, as the file says to round it.

    Raises:
        ParityError: it names the first node that makes NaN or infinity.
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
    """A graph all of whose floating-point values can be seen."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes, self.weights = model.graph.node, {tensor.name for tensor in model.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(model).graph
        types = {entry.name: entry.type.tensor_type.elem_type for entry in (*inferred.value_info, *inferred.output)}
        self.values = [name for node in self.nodes for name in node.output if types.get(name) in FLOATS]
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        del probe.graph.output[:]
        probe.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in self.values)
        options = onnxruntime.SessionOptions()
        # Optimised away, a node would not be named.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            probe.SerializeToString(), options, providers=[EXECUTION_PROVIDERS["cpu"]]
        )

    def first_non_finite(self, feed: Mapping[str, NDArray[Any]]) -> str | None:
        """The first node, in the graph's order, whose output is not finite, with its type and weights; None if none."""
        values = dict(zip(self.values, self.session.run(self.values, dict(feed)), strict=True))
        for node in self.nodes:
            if any(not np.isfinite(values[name]).all() for name in node.output if name in values):
                own = [name for name in node.input if name in self.weights]
                return f"node {node.name} ({', '.join([node.op_type, *own])})"
        return None
