"""A traced backbone: an ONNX graph in which every parameter of the timm model can be found and replaced.

    plain.onnx     the backbone with a stand-in head; its weights bear the names of timm's parameters
    shared*.onnx   the backbone with banks as inputs, one for each layout that tasks have
    graph.json     parameter -> (node, input of that node, transposed), and the sha256 of every graph

Only numpy and onnx: whoever folds tasks needs no torch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from onnx import helper, numpy_helper
from pydantic import BaseModel, ConfigDict

from mosa_deploy.bundles.format_version import FileFormat
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.store_layout import GRAPH, PLAIN
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.errors import StoreError
from mosa_deploy.utils.files import replacing, replacing_folder, sha256, write_text

AGAIN = "remove the folder and export a task again"

INDEX_FORMAT = FileFormat(GRAPH, StoreError, remedy=AGAIN)


class ParameterRef(BaseModel):
    """Where a parameter enters the graph: one input of one node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    input: int
    transposed: bool
    """The graph holds the matrix as (in, out), timm as (out, in)."""


class Index(BaseModel):
    """`graph.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = INDEX_FORMAT.newest
    backbone: str
    """sha256 of the backbone's headless state dict, as bundles name it."""
    depth: int
    embed_dim: int
    stages: tuple[int, ...] = ()
    parameters: dict[str, ParameterRef]
    """Of plain.onnx, by timm's names."""
    files: dict[str, str]
    """Name -> sha256 of each graph."""

    @property
    def topology(self) -> BlockTopology:
        """Where the backbone's blocks lie."""
        return BlockTopology(self.depth, self.embed_dim, self.stages)


def save_graphs(folder: Path, index: Index, graphs: Mapping[str, onnx.ModelProto]) -> None:
    """Write the graphs of a backbone with their index, whose `files` are filled in; a folder has all or none."""
    with replacing_folder(folder) as aside:
        for name, graph in graphs.items():
            onnx.save(graph, aside / name)
        files = {name: sha256(aside / name) for name in graphs}
        (aside / GRAPH).write_text(index.model_copy(update={"files": files}).model_dump_json(indent=2) + "\n")


def add_graph(folder: Path, name: str, graph: onnx.ModelProto) -> None:
    """Add a graph to a backbone's folder; the index names it only once it is there.

    Raises:
        StoreError: the folder's index is missing or damaged.
    """
    read_index(folder)
    with replacing(folder / name) as aside:
        onnx.save(graph, aside)
    add_graph_file(folder / name)


def read_index(folder: Path) -> Index:
    """`graph.json`.

    Raises:
        StoreError: it is missing, damaged, or of another format version.
    """
    path = folder / GRAPH
    try:
        return Index.model_validate(INDEX_FORMAT.upgrade(json.loads(path.read_bytes()), str(path)))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; {AGAIN}") from None
    except (ValueError, AttributeError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}): {AGAIN}") from None


def graph_file(folder: Path, index: Index, name: str) -> Path:
    """The path of a graph whose bytes are those that were traced.

    Raises:
        StoreError: it is missing or altered.
    """
    path = folder / name
    if name not in index.files or not path.is_file():
        raise StoreError(f"{path}: no such file; {AGAIN}")
    if sha256(path) != index.files[name]:
        raise StoreError(f"{path} was altered or cut short since it was traced: {AGAIN}")
    return path


def add_graph_file(path: Path) -> None:
    """Enter a file that was made of the backbone's graphs, and lies beside them, into their index."""
    index = read_index(path.parent)
    added = index.model_copy(update={"files": index.files | {path.name: sha256(path)}})
    write_text(path.parent / GRAPH, added.model_dump_json(indent=2) + "\n")


@dataclass(frozen=True)
class PlainGraph:
    """The plain backbone's graph, ending in a linear head: images (B, 3, H, W) -> logits (B, K)."""

    model: onnx.ModelProto
    index: Index

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read and check `plain.onnx`.

        Raises:
            StoreError: a file is missing, altered, or of another format version.
        """
        index = read_index(folder)
        return cls(onnx.load(graph_file(folder, index, PLAIN)), index)

    def parameter(self, name: str) -> Array:
        """A parameter in timm's layout, e.g. (out, in)."""
        value = numpy_helper.to_array(self._initializers()[name])
        return value.T if self.index.parameters[name].transposed else value

    def replaced(self, parameters: Mapping[str, Array]) -> onnx.ModelProto:
        """A copy of the graph with other values, in timm's layout and of any width, for some of its parameters.

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
        """The graph's nodes, inputs and outputs, with a head of another width if that is given, without any values."""
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
        """The shapes between the nodes; weights enter by their shapes alone, since inference copies what it reads."""
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
