"""Cut a shared graph in two, where tasks begin to differ: what they have in common runs once per image.

    the prefix   images (B, 3, H, W), slots, banks of the blocks before  -> tokens (B, N, C)
    the suffix   tokens, slots, banks of the other blocks                -> features (B, C)

With h_l the residual stream, the tokens are the last h that every later value is computed from and no bank of the other
blocks has touched: h after the attention of a block with an adapter beside its FFN, or what a block with another
adapter reads. Values that do not come from the images, such as weights and the angles of rotary positions, go to each
part that reads them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper


@dataclass(frozen=True)
class CutGraph:
    """The two parts of a graph; the output of the first is the first input of the second."""

    prefix: onnx.ModelProto
    suffix: onnx.ModelProto


def cut_graph(model: onnx.ModelProto, adapted: Collection[str]) -> CutGraph:
    """Cut a shared graph before everything that reads the banks `adapted`, which are inputs of it.

    Raises:
        ValueError: it cannot be cut there; the message says why.
    """
    graph = model.graph
    images, slots, *banks = graph.input
    name = last_in_common(graph, images.name, adapted)
    if name in (None, images.name):
        raise ValueError("nothing runs before the blocks that differ")
    tokens = _described(model, name)
    return CutGraph(
        _part(model, [images, slots, *banks], tokens),
        _part(model, [tokens, slots, *banks], graph.output[0]),
    )


def cut_file(path: Path, adapted: Collection[str], folder: Path) -> dict[Path, list[str]]:
    """Cut the graph in a file; returns the file of each part, in `folder`, and the inputs that it reads.

    Raises:
        ValueError: it cannot be cut there, or is too large.
    """
    cut, files = cut_graph(onnx.load(path), adapted), dict[Path, list[str]]()
    for name, part in (("prefix", cut.prefix), ("suffix", cut.suffix)):
        onnx.save(part, folder / f"{name}.onnx")
        files[folder / f"{name}.onnx"] = [value.name for value in part.graph.input]
    return files


def last_in_common(graph: onnx.GraphProto, images: str, adapted: Collection[str]) -> str | None:
    """The last value that every later one is computed from, among those that the banks `adapted` have not touched.

    Nodes are in the order in which they run. After each, `live` holds the values computed from the images that are
    still to be read; where there is one alone, all that follows goes through it.
    """
    last_read = {name: i for i, node in enumerate(graph.node) for name in node.input}
    last_read |= {output.name: len(graph.node) for output in graph.output}
    live, touched, found = {images}, set(adapted), None
    for i, node in enumerate(graph.node):
        if touched.intersection(node.input):
            touched.update(node.output)
            if live.intersection(node.input):
                break
        elif live.intersection(node.input):
            live = {value for value in live.union(node.output) if last_read.get(value, -1) > i}
            if len(live) == 1:
                (found,) = live
    return found


def _described(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    """The type and the shape of a value.

    Raises:
        ValueError: it is not in fp32, as runners give and take values.
    """
    known: dict[str, onnx.ValueInfoProto] = {value.name: value for value in model.graph.value_info}
    if name not in known:
        inferred = onnx.shape_inference.infer_shapes(model)
        known = {value.name: value for value in inferred.graph.value_info}
    if name not in known or known[name].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ValueError("its tokens are not in fp32")
    return known[name]


def _part(
    model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto], output: onnx.ValueInfoProto
) -> onnx.ModelProto:
    """What an output needs of a graph, where the inputs are given."""
    given, needed, kept = {value.name for value in inputs}, {output.name}, list[onnx.NodeProto]()
    for node in reversed(model.graph.node):
        if needed.intersection(node.output) - given:
            kept.append(node)
            needed.update(node.input)
    made = {name for node in kept for name in node.output}
    graph = helper.make_graph(
        kept[::-1],
        model.graph.name,
        [value for value in inputs if value.name in needed],
        [output],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
        value_info=[value for value in model.graph.value_info if value.name in made - {output.name}],
    )
    part = helper.make_model(
        graph,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        opset_imports=model.opset_import,
        functions=model.functions,
    )
    part.metadata_props.extend(model.metadata_props)
    return part
