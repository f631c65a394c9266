"""From a torch model to an ONNX graph with a dynamic batch."""

import warnings
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import torch
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy.files import replacing

OPSET = 20
"""Attention decomposed: 6-18 % faster on ONNX Runtime CPU than opset 23's native node, which TensorRT-RTX refuses."""

STAND_IN_CLASSES = 10
"""A backbone that comes without a head gets one of this width, so that plain and folded graphs have the same nodes."""

INPUT, OUTPUT = "images", "logits"


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
