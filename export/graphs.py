"""From a torch model to an ONNX graph with a dynamic batch."""

import copy
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy.backbone import randomise
from mosa_deploy.errors import BackboneError
from mosa_deploy.files import replacing
from mosa_deploy.graph import Index, Place, PlainGraph
from mosa_deploy.store import PLAIN

OPSET = 20
"""Attention decomposed: 6-18 % faster on ONNX Runtime CPU than opset 23's native node, which TensorRT-RTX refuses."""

STAND_IN_CLASSES = 10
"""A backbone that comes without a head gets one of this width, so that plain and folded graphs have the same nodes."""

INPUT, OUTPUT = "images", "logits"


def trace_plain(model: VisionTransformer, backbone: str) -> PlainGraph:
    """The graph of a plain backbone whose headless state dict has the sha256 `backbone`.

    The exporter renames weights, joins equal ones and folds what it can compute. So a copy with random weights, no two
    of them equal, is traced, each of its tensors is found again by its bytes, and the model's own take their places.

    Raises:
        BackboneError: a parameter does not enter the graph as it is.
    """
    stand_in = copy.deepcopy(model)
    randomise(stand_in)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / PLAIN
        write_onnx(stand_in, path)
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
        places[name] = Place(node=node.name, input=i, transposed=transposed)
        value = own[name].T if transposed else own[name]
        tensor.CopyFrom(numpy_helper.from_array(value.contiguous().numpy(), name))
        node.input[i] = name
    missing = sorted(own.keys() - places.keys())
    if missing:
        raise BackboneError(
            f"the graph does not hold {', '.join(missing)} as timm does: tasks cannot be folded into it"
        )
    return PlainGraph(traced, Index(backbone=backbone, parameters=places))


def write_onnx(model: VisionTransformer, path: Path) -> None:
    """Trace `model` in fp32 to `path`: images (B, 3, H, W) -> logits (B, K), and check the file."""
    height, width = model.patch_embed.img_size
    example = torch.zeros(2, 3, height, width)
    with replacing(path) as aside, warnings.catch_warnings():
        # The exporter warns of its own deprecated internals.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program is not None
        program.save(aside)
        onnx.checker.check_model(aside, full_check=True)


def node_types(path: Path) -> Counter[str]:
    """How many nodes of each type a graph has."""
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def optimised_node_types(path: Path, scratch: Path) -> Counter[str]:
    """The same after ONNX Runtime's own optimisation, written to `scratch`."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(scratch)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return node_types(scratch)
