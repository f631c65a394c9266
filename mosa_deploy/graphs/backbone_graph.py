"""A traced backbone: an ONNX graph in which every parameter of the timm model can be found and replaced.

    plain.onnx     the backbone with a stand-in head; its weights bear the names of timm's parameters
    shared*.onnx   the backbone with banks as inputs, one for each layout that tasks have, and one for all probes

`mosa_deploy.bundles.graph_index` says where the parameters are. Only numpy and onnx: folding needs no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mosa_deploy.bundles.graph_index import GraphIndex, add_graph_file, graph_file, read_index
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.store_layout import GRAPH, PLAIN
from mosa_deploy.utils.files import replacing, replacing_folder, sha256


def save_graphs(folder: Path, index: GraphIndex, graphs: Mapping[str, onnx.ModelProto]) -> None:
    """Write all graphs of a backbone, or none, with an index whose `files` are filled in."""
    with replacing_folder(folder) as aside:
        for name, graph in graphs.items():
            onnx.save(graph, aside / name)
        files = {name: sha256(aside / name) for name in graphs}
        (aside / GRAPH).write_text(index.model_copy(update={"files": files}).model_dump_json(indent=2) + "\n")


def add_graph(folder: Path, name: str, graph: onnx.ModelProto) -> None:
    """Write a graph into a backbone's folder, and then into its index.

    Raises:
        StoreError: the folder's index is missing or damaged.
    """
    read_index(folder)
    with replacing(folder / name) as aside:
        onnx.save(graph, aside)
    add_graph_file(folder / name)


@dataclass(frozen=True)
class PlainGraph:
    """The plain backbone's graph, ending in a linear head: images (B, 3, H, W) -> logits (B, K)."""

    model: onnx.ModelProto
    index: GraphIndex

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read and check `plain.onnx`.

        Raises:
            StoreError: a file is missing, damaged or altered, or was written by a newer release.
        """
        index = read_index(folder)
        return cls(onnx.load(graph_file(folder, index, PLAIN)), index)

    def parameter(self, name: str) -> Array:
        """A parameter in timm's layout, e.g. (out, in)."""
        value = numpy_helper.to_array(self._initializers()[name])
        return value.T if self.index.parameters[name].transposed else value

    def replaced(self, parameters: Mapping[str, Array]) -> onnx.ModelProto:
        """A copy of the graph in which some parameters have other values, in timm's layout and of any width.

        The shapes between the nodes are inferred anew.
        """
        kept = [tensor for name, tensor in self._initializers().items() if name not in parameters]
        bias = parameters.get(f"{self.index.topology.head}.bias")
        model = self._empty(classes=None if bias is None else len(bias))
        graph = model.graph
        graph.initializer.extend(kept)
        for name, value in parameters.items():
            layout = value.T if self.index.parameters[name].transposed else value
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(layout, dtype=np.float32), name))
        skeleton = self._empty(classes=graph.output[0].type.tensor_type.shape.dim[-1].dim_value)
        graph.value_info.extend(self._shapes(skeleton, graph.initializer))
        return model

    def _empty(self, classes: int | None) -> onnx.ModelProto:
        """The graph's nodes, inputs and outputs without any values; its head has `classes` outputs if that is given."""
        own = self.model
        model = onnx.ModelProto(
            ir_version=own.ir_version,
            producer_name=own.producer_name,
            opset_import=own.opset_import,
            functions=own.functions,
        )
        model.graph.name = own.graph.name
        model.graph.node.extend(own.graph.node)
        model.graph.input.extend(own.graph.input)
        model.graph.output.extend(own.graph.output)
        if classes is not None:
            model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = classes
        return model

    def _shapes(self, skeleton: onnx.ModelProto, initializers: Iterable[onnx.TensorProto]) -> list[onnx.ValueInfoProto]:
        """The shapes between the nodes. Weights enter by their shapes alone, since inference copies its input."""
        for tensor in initializers:
            if tensor.name in self.index.parameters:
                weight = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                skeleton.graph.input.append(weight)
            else:
                skeleton.graph.initializer.append(tensor)
        inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True)
        return list(inferred.graph.value_info)

    def _initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}
