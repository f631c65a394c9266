"""fp16: weights and activations of a graph in half precision, what is delicate in fp32."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxconverter_common import float16

from mosa_deploy.errors import ParityError

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


def require_finite(name: str, file: Path, inputs: Mapping[str, NDArray[Any]], output: NDArray[Any]) -> None:
    """Refuse a converted file whose output for these inputs is not finite.

    Raises:
        ParityError: it names the first node that makes NaN or infinity.
    """
    odd = np.flatnonzero(~np.isfinite(output).reshape(len(output), -1).all(axis=1))
    if not len(odd):
        return
    # One image is enough to find the node, and all its activations fit into memory.
    model = onnx.load(file)
    banks = {entry.name for entry in model.graph.input[2:]}
    one = {key: value if key in banks else value[odd[:1]] for key, value in inputs.items()}
    raise ParityError(
        f"{name}: {first_non_finite(model, one)} makes NaN or infinity after the conversion; the store keeps what it"
        " had. Leave this precision out of --precision"
    )


def first_non_finite(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> str:
    """The first node, in the graph's order, whose output is not finite, with its type and its weights."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {entry.name: entry.type.tensor_type.elem_type for entry in (*inferred.value_info, *inferred.output)}
    watched = [name for node in probe.graph.node for name in node.output if types.get(name) in FLOATS]
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in watched)
    options = onnxruntime.SessionOptions()
    # Optimised away, a node would not be named.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = dict(zip(watched, session.run(watched, dict(inputs)), strict=True))
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if any(not np.isfinite(values[name]).all() for name in node.output if name in values):
            own = [name for name in node.input if name in weights]
            return f"node {node.name} ({', '.join([node.op_type, *own])})"
    return "its last node"
