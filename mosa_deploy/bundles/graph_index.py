"""`graph.json`: the index of a backbone's graphs in a store.

It says where each parameter of the timm model enters the plain graph, and holds the sha256 of every graph. In a shared
int8 graph the channels of tokens may be divided by powers of two, so that none is much larger than the others. The rows
of its banks are then multiplied by them: `scales`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from mosa_deploy.bundles.format_version import Fields, FileFormat
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.store_layout import GRAPH
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.errors import StoreError
from mosa_deploy.utils.files import sha256, write_text

AGAIN = "remove the folder and export a task again"

Exponents = Mapping[str, tuple[int, ...]]
"""Name of a bank tensor -> k of each of its rows, which is multiplied by 2^k."""


def _without_scales(fields: Fields) -> Fields:
    return {**fields, "scales": {}}


INDEX_FORMAT = FileFormat(GRAPH, StoreError, remedy=AGAIN, migrations=(_without_scales,))


class ParameterRef(BaseModel):
    """Where a parameter enters the graph: one input of one node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    input: int
    transposed: bool
    """The graph holds the matrix as (in, out), timm as (out, in)."""


class GraphIndex(BaseModel):
    """`graph.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = INDEX_FORMAT.newest
    backbone: str
    """sha256 of the backbone's headless state dict, as bundles name it."""
    depth: int
    embed_dim: int
    stages: tuple[int, ...] = ()
    parameters: dict[str, ParameterRef]
    """The parameters of plain.onnx, by timm's names."""
    files: dict[str, str]
    """File name -> sha256 of each graph."""
    scales: dict[str, dict[str, tuple[int, ...]]] = {}
    """File name -> bank tensor -> k of each of its rows; files without scales are absent."""

    @property
    def topology(self) -> BlockTopology:
        """Where the backbone's blocks lie."""
        return BlockTopology(self.depth, self.embed_dim, self.stages)

    def bank_scales(self, file: str) -> dict[str, Array]:
        """What a bank for this file multiplies its rows by: name of the tensor -> 2^k. Empty for most files."""
        return scales_of(self.scales.get(file, {}))


def scales_of(exponents: Exponents) -> dict[str, Array]:
    """Name of a bank tensor -> 2^k of each of its rows."""
    return {name: np.exp2(np.array(own, dtype=np.float32)) for name, own in exponents.items()}


def read_index(folder: Path) -> GraphIndex:
    """Read the `graph.json` of a backbone.

    Raises:
        StoreError: it is missing or damaged, or was written by a newer release.
    """
    path = folder / GRAPH
    try:
        return GraphIndex.model_validate(INDEX_FORMAT.upgrade(json.loads(path.read_bytes()), str(path)))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; {AGAIN}") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}): {AGAIN}") from None


def graph_file(folder: Path, index: GraphIndex, name: str) -> Path:
    """The path of a graph, once its bytes have been compared with the index.

    Raises:
        StoreError: it is missing or altered.
    """
    path = folder / name
    if name not in index.files or not path.is_file():
        raise StoreError(f"{path}: no such file; {AGAIN}")
    if sha256(path) != index.files[name]:
        raise StoreError(f"{path} was altered or cut short since it was traced: {AGAIN}")
    return path


def add_graph_file(path: Path, exponents: Exponents | None = None) -> None:
    """Add a file that was made from a backbone's graphs, and lies beside them, to their index.

    `exponents` are those of the scales for its banks, if it needs any.
    """
    index = read_index(path.parent)
    scales = {name: own for name, own in index.scales.items() if name != path.name}
    if exponents:
        scales[path.name] = dict(exponents)
    added = index.model_copy(update={"files": index.files | {path.name: sha256(path)}, "scales": scales})
    write_text(path.parent / GRAPH, added.model_dump_json(indent=2) + "\n")
