"""Trace a torch model to an ONNX graph with a dynamic batch size."""

import copy
import logging
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.trace_shared import SLOTS, SharedBackbone
from export.traceable import traceable
from mosa_deploy.backbones.foldable import Transformer, image_size, topology_of
from mosa_deploy.backbones.load import randomise
from mosa_deploy.bundles.graph_index import GraphIndex, ParameterRef
from mosa_deploy.bundles.store_layout import PLAIN
from mosa_deploy.errors import BackboneError
from mosa_deploy.graphs.adapter_weights import Layout, ProbeLayout, SharedLayout
from mosa_deploy.graphs.backbone_graph import PlainGraph, add_graph, save_graphs
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.graphs.probe import FEATURES, shared_probe_graph
from mosa_deploy.runtimes.names import EXECUTION_PROVIDERS
from mosa_deploy.utils.files import replacing

OPSET = 20
"""Attention decomposed: 6-18 % faster on ONNX Runtime CPU than opset 23's native node, which TensorRT-RTX refuses."""

STAND_IN_CLASSES = 10
"""A backbone that comes without a head gets one of this width, so that plain and folded graphs have the same nodes."""

INPUT, OUTPUT = "images", "logits"

# It warns of every constant that it leaves to the runtime, such as the angles of a DINOv3's positions.
logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)


def write_onnx(model: Transformer, path: Path) -> None:
    """Trace `model` in fp32 to `path`: images (B, 3, H, W) -> logits (B, K), and check the file."""
    write_graph(model, path, [INPUT], OUTPUT, (example_images(model),), ({0: torch.export.Dim("batch")},))


def example_images(model: Transformer) -> Tensor:
    """The images that a model is traced with: two, because torch takes a batch of one as a constant."""
    return torch.zeros(2, 3, *image_size(model))


def write_graph(
    model: nn.Module, path: Path, inputs: list[str], output: str, arguments: tuple[Any, ...], dynamic: tuple[Any, ...]
) -> None:
    """Trace a model in fp32 with the given arguments and dynamic shapes, and check the file."""
    with replacing(path) as aside, warnings.catch_warnings():
        # The exporter warns of its own deprecated internals.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(),
            arguments,
            dynamo=True,
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            input_names=inputs,
            output_names=[output],
            verbose=False,
        )
        assert program is not None
        # Every node carries a Python stack trace with paths of this machine.
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        program.save(aside)
        onnx.checker.check_model(aside, full_check=True)


def trace_backbone(model: Transformer, sha256: str, folder: Path, layout: SharedLayout) -> None:
    """Write the plain graph of a backbone and the shared graph of a layout into `folder`, with their index.

    `model` has a stand-in head; `sha256` is that of the state dict without a head.
    """
    plain = trace_plain(model, sha256)
    save_graphs(folder, plain.index, {PLAIN: plain.model, layout.file: shared_graph(model, plain, layout)})


def trace_layout(model: Transformer, folder: Path, layout: SharedLayout) -> None:
    """Add the shared graph of another layout to a backbone's folder."""
    add_graph(folder, layout.file, shared_graph(model, PlainGraph.load(folder), layout))


def shared_graph(model: Transformer, plain: PlainGraph, layout: SharedLayout) -> onnx.ModelProto:
    """The shared graph of a layout: that of probes is made from the plain graph, the others are traced."""
    return shared_probe_graph(plain) if isinstance(layout, ProbeLayout) else trace_shared(model, layout)


def trace_plain(model: Transformer, sha256: str) -> PlainGraph:
    """The plain graph, which tasks are folded into, and the places of its parameters."""
    graph, places = trace(model, [INPUT], OUTPUT, (example_images(model),), ({0: torch.export.Dim("batch")},))
    topology = topology_of(model)
    index = GraphIndex(
        backbone=sha256,
        depth=topology.depth,
        embed_dim=topology.width,
        stages=topology.stages,
        parameters=places,
        files={},
    )
    return PlainGraph(graph, index)


def trace_shared(model: Transformer, layout: Layout) -> onnx.ModelProto:
    """The shared graph, which reads tasks from the banks of a layout."""
    batch, bank = torch.export.Dim("batch"), Bank(layout, capacity=2)
    arguments = (example_images(model), torch.tensor([0, 1]), [torch.from_numpy(v) for v in bank.tensors.values()])
    dynamic = ({0: batch}, {0: batch}, [bank_dimensions(name) for name in bank.tensors])
    return trace(SharedBackbone(model, layout), [INPUT, SLOTS, *bank.tensors], FEATURES, arguments, dynamic)[0]


def bank_dimensions(name: str) -> dict[int, Any]:
    """The dynamic dimensions of the bank tensor `name`: slots, and where there is one, the bottleneck."""
    slots, bottleneck = torch.export.Dim("slots"), torch.export.Dim("bottleneck")
    part: dict[str, dict[int, Any]] = {"down": {2: bottleneck}, "down_bias": {1: bottleneck}, "up": {1: bottleneck}}
    return {0: slots} | part.get(name.rpartition(".")[2], {})


def trace(
    model: nn.Module, inputs: list[str], output: str, arguments: tuple[Any, ...], dynamic: tuple[Any, ...]
) -> tuple[onnx.ModelProto, dict[str, ParameterRef]]:
    """A graph whose weights have the names of the model's parameters, and the place of each parameter in it.

    The exporter renames weights, merges equal ones and folds constants. Therefore a copy with random weights, all
    different, is traced. Its tensors are found in the graph by their bytes and replaced by the model's own.

    Raises:
        BackboneError: a parameter is not in the graph unchanged.
    """
    model = traceable(model)
    stand_in = copy.deepcopy(model)
    randomise(stand_in)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / PLAIN
        write_graph(stand_in, path, inputs, output, arguments, dynamic)
        traced = onnx.load(path)
    known: dict[bytes, tuple[str, bool]] = {}
    for name, value in stand_in.state_dict().items():
        known[value.numpy().tobytes()] = (name, False)
        if value.ndim == 2:
            known[value.T.contiguous().numpy().tobytes()] = (name, True)
    places, own = {}, model.state_dict()
    users = {name: (node, i) for node in traced.graph.node for i, name in enumerate(node.input)}
    for tensor in traced.graph.initializer:
        found = known.get(numpy_helper.to_array(tensor).tobytes())
        if found is None:
            continue
        name, transposed = found
        node, i = users[tensor.name]
        places[name] = ParameterRef(node=node.name, input=i, transposed=transposed)
        value = own[name].T if transposed else own[name]
        tensor.CopyFrom(numpy_helper.from_array(value.contiguous().numpy(), name))
        node.input[i] = name
    missing = sorted(own.keys() - places.keys())
    if missing:
        raise BackboneError(
            f"the graph does not hold {', '.join(missing)} as timm does: tasks cannot be folded into it"
        )
    return traced, places


def node_types(path: Path) -> Counter[str]:
    """The number of nodes of each type in a graph."""
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def optimised_node_types(path: Path, scratch: Path) -> Counter[str]:
    """The number of nodes of each type after ONNX Runtime has optimised the graph, which is written to `scratch`."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(scratch)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=[EXECUTION_PROVIDERS["cpu"]])
    return node_types(scratch)
