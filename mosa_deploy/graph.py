"""A traced backbone: an ONNX graph in which every parameter of the timm model can be found and replaced.

    plain.onnx   the graph; its weights bear the names of timm's parameters
    graph.json   parameter -> (node, input of that node, transposed), and the sha256 of plain.onnx

Only numpy and onnx: whoever folds tasks needs no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from onnx import numpy_helper
from pydantic import BaseModel, ConfigDict, ValidationError

from mosa_deploy.errors import StoreError
from mosa_deploy.files import replacing, sha256
from mosa_deploy.preprocess import Array
from mosa_deploy.store import GRAPH, PLAIN

FORMAT_VERSION = 1


class Place(BaseModel):
    """Where a parameter enters the graph: one input of one node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    input: int
    transposed: bool
    """The graph holds the matrix as (in, out), timm as (out, in)."""


class Index(BaseModel):
    """`graph.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    backbone: str
    """sha256 of the backbone's headless state dict, as bundles name it."""
    parameters: dict[str, Place]
    sha256: str = ""
    """Of plain.onnx."""


@dataclass(frozen=True)
class PlainGraph:
    """The plain backbone's graph, ending in a linear head: images (B, 3, H, W) -> logits (B, K)."""

    model: onnx.ModelProto
    index: Index

    def save(self, folder: Path) -> None:
        """Write `plain.onnx` and `graph.json`."""
        # Both are written before either is renamed, as a bundle's two files are.
        with replacing(folder / PLAIN) as graph, replacing(folder / GRAPH) as text:
            onnx.save(self.model, graph)
            index = self.index.model_copy(update={"sha256": sha256(graph)})
            text.write_text(index.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read and check both files.

        Raises:
            StoreError: one is missing, altered, or of another format version.
        """
        again = "remove the folder and export a task again"
        for name in (GRAPH, PLAIN):
            if not (folder / name).is_file():
                raise StoreError(f"{folder / name}: no such file; {again}")
        try:
            index = Index.model_validate_json((folder / GRAPH).read_bytes())
        except ValidationError as error:
            raise StoreError(f"{folder / GRAPH} is damaged ({error.errors()[0]['msg']}): {again}") from None
        if index.format_version != FORMAT_VERSION:
            version = f"format version {index.format_version}, this release reads {FORMAT_VERSION}"
            raise StoreError(f"{folder / GRAPH} has {version}: {again}")
        if sha256(folder / PLAIN) != index.sha256:
            raise StoreError(f"{folder / PLAIN} was altered or cut short since it was traced: {again}")
        return cls(onnx.load(folder / PLAIN), index)

    def parameter(self, name: str) -> Array:
        """A parameter in timm's layout, e.g. (out, in)."""
        value = numpy_helper.to_array(self._initializers()[name])
        return value.T if self.index.parameters[name].transposed else value

    def replaced(self, parameters: Mapping[str, Array]) -> onnx.ModelProto:
        """A copy of the graph with other values, in timm's layout and of any width, for some of its parameters.

        The shapes between the nodes are inferred anew.
        """
        kept = [tensor for name, tensor in self._initializers().items() if name not in parameters]
        graph = onnx.GraphProto()
        graph.name = self.model.graph.name
        graph.node.extend(self.model.graph.node)
        graph.input.extend(self.model.graph.input)
        graph.output.extend(self.model.graph.output)
        graph.initializer.extend(kept)
        for name, value in parameters.items():
            layout = value.T if self.index.parameters[name].transposed else value
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(layout, dtype=np.float32), name))
        classes = parameters.get("head.bias")
        if classes is not None:
            graph.output[0].type.tensor_type.shape.dim[-1].dim_value = len(classes)
        model = onnx.ModelProto(
            ir_version=self.model.ir_version,
            producer_name=self.model.producer_name,
            opset_import=self.model.opset_import,
            functions=self.model.functions,
            graph=graph,
        )
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)

    def _initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}
