"""Graphs of probes, made from the plain graph with onnx alone: more of what its blocks write becomes features.

    a task's own    images (B, 3, H, W)                -> logits (B, K)
    the shared one  images (B, 3, H, W), query (T, C)  -> features (B, F), all those of `bundles.probe_features`

The shared graph answers for all T queries of its bank at once, so one pass of an image serves every probe of its
backbone, whatever it reads. Queries come divided by sqrt(C).

`mosa_deploy.adapters.probe` computes the same with torch. The two are written independently, so that each checks the
other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.probe_features import QUERY, columns, earlier_blocks
from mosa_deploy.graphs.adapter_weights import adapter_weights
from mosa_deploy.graphs.backbone_graph import PlainGraph

FEATURES = "features"
"""The output of the shared graph."""

PREFIX = ("cls_token", "reg_token")
"""The parameters that timm's ViT puts before the patches, (1, n, C) each."""

NORMS = ("norm.weight", "fc_norm.weight")
"""The last norm, before the pooling or after it."""


def probe_graph(graph: PlainGraph, bundle: Bundle) -> onnx.ModelProto:
    """The graph of one probe: images (B, 3, H, W) -> logits (B, K)."""
    made, (weight, bias) = ProbeNodes(graph), bundle.head
    if bundle.record.features == "attended":
        features = made.attended(made.weight(QUERY, adapter_weights(bundle)[QUERY][None]))
    else:
        topology = graph.index.topology
        parts, taken = made.pooled(), columns(bundle.record.features, topology)
        features = made.join(parts[taken.start // topology.features : taken.stop // topology.features])
    head = [made.weight(f"head.{name}", value) for name, value in (("weight", weight), ("bias", bias))]
    logits = graph.model.graph.output[0]
    made.add("Gemm", [features, *head], logits.name, transB=1)
    shape: list[str | int] = [logits.type.tensor_type.shape.dim[0].dim_param, len(bias)]
    return made.model(graph.model.graph.input, helper.make_tensor_value_info(logits.name, TensorProto.FLOAT, shape))


def shared_probe_graph(graph: PlainGraph) -> onnx.ModelProto:
    """The graph that all probes of a backbone share: images (B, 3, H, W) and queries (T, C) -> features (B, F)."""
    made, width = ProbeNodes(graph), graph.index.topology.features
    query = helper.make_tensor_value_info(QUERY, TensorProto.FLOAT, ["slots", width])
    made.add("Concat", [*made.pooled(), made.attended(QUERY)], FEATURES, axis=1)
    batch = graph.model.graph.output[0].type.tensor_type.shape.dim[0].dim_param
    features = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [batch, "features"])
    return made.model([*graph.model.graph.input, query], features)


class ProbeNodes:
    """Nodes that are added to a copy of the plain graph, whose head is left out."""

    def __init__(self, graph: PlainGraph) -> None:
        self.graph, self.topology = graph, graph.index.topology
        self.nodes = list(graph.model.graph.node)
        self.named = {node.name: node for node in self.nodes}
        self.weights = {tensor.name: tensor for tensor in graph.model.graph.initializer}
        self.prefix = sum(graph.parameter(name).shape[1] for name in PREFIX if name in graph.index.parameters)

    def pooled(self) -> list[str]:
        """The values z_{L-3}, ..., z_L and m, (B, C) each."""
        blocks = list(self.topology.blocks)
        earlier = [self.token(self.block_output(name)) for name in blocks[-1 - earlier_blocks(self.topology) : -1]]
        return [*earlier, self.node_of("head.weight").input[0], self.mean(self.patches())]

    def patches(self) -> str:
        """The last block's patches after the last norm (B, N, C)."""
        *_, last = self.topology.blocks
        if NORMS[0] in self.graph.index.parameters:
            return self.without_prefix(self.node_of(NORMS[0]).output[0])
        return self.normed(self.without_prefix(self.block_output(last)))

    def attended(self, queries: str) -> str:
        """The patches as T queries (T, C) weigh them, side by side: (B, T C)."""
        patches = self.patches()
        scores = self.add("MatMul", [patches, self.add("Transpose", [queries], perm=[1, 0])])
        weights = self.add("Transpose", [self.add("Softmax", [scores], axis=1)], perm=[0, 2, 1])
        return self.add("Flatten", [self.add("MatMul", [weights, patches])], axis=1)

    def token(self, block: str) -> str:
        """The class token of a block's output (B, N, C), or the mean of its patches, after the last norm: (B, C)."""
        if PREFIX[0] in self.graph.index.parameters:
            first = self.add("Gather", [block, self.constant("first", np.array(0))], axis=1)
            return self.normed(first)
        return self.mean(self.normed(self.without_prefix(block)))

    def block_output(self, block: str) -> str:
        """What a block writes (B, N, C): the first sum of two activations after its fc2, which is the residual one."""
        value: str = self.node_of(f"{block}.mlp.fc2.weight").output[0]
        while True:
            (node,) = (node for node in self.nodes if value in node.input)
            value = node.output[0]
            if node.op_type == "Add" and not any(name in self.weights for name in node.input):
                return value

    def normed(self, value: str) -> str:
        """A value (..., C) after the backbone's last norm, if it has one."""
        name = next((name for name in NORMS if name in self.graph.index.parameters), None)
        if name is None:
            return value
        norm = self.node_of(name)
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in norm.attribute}
        return self.add(norm.op_type, [value, *norm.input[1:]], **attributes)

    def without_prefix(self, tokens: str) -> str:
        """The patches among the tokens (B, N, C)."""
        if not self.prefix:
            return tokens
        bounds = {"start": self.prefix, "end": np.iinfo(np.int64).max, "axis": 1}
        return self.add("Slice", [tokens, *(self.constant(name, np.array([n])) for name, n in bounds.items())])

    def mean(self, patches: str) -> str:
        """The mean of the patches (B, N, C) -> (B, C)."""
        return self.add("ReduceMean", [patches, self.constant("axis", np.array([1]))], keepdims=0)

    def join(self, parts: Sequence[str]) -> str:
        """Values side by side."""
        return parts[0] if len(parts) == 1 else self.add("Concat", parts, axis=1)

    def node_of(self, parameter: str) -> onnx.NodeProto:
        """The node that a parameter of the backbone enters."""
        node: onnx.NodeProto = self.named[self.graph.index.parameters[parameter].node]
        return node

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"probe_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output or name], name=name, **attributes))
        return output or name

    def constant(self, name: str, value: NDArray[np.int64]) -> str:
        """A constant that nodes share."""
        return self.weight(f"probe.{name}", value.astype(np.int64))

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """An initializer of this name."""
        self.weights[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def model(self, inputs: Sequence[onnx.ValueInfoProto], output: onnx.ValueInfoProto) -> onnx.ModelProto:
        """The graph of the nodes and weights that the output needs; shapes between nodes are for runtimes to infer."""
        nodes, needed = list[onnx.NodeProto](), {output.name}
        head = self.node_of("head.weight")
        for node in reversed(self.nodes):
            if node is not head and needed.intersection(node.output):
                nodes.append(node)
                needed.update(node.input)
        weights = [tensor for name, tensor in self.weights.items() if name in needed]
        own = self.graph.model
        made = helper.make_graph(nodes[::-1], own.graph.name, inputs, [output], weights)
        return helper.make_model(
            made,
            ir_version=own.ir_version,
            producer_name=own.producer_name,
            opset_imports=own.opset_import,
            functions=own.functions,
        )
