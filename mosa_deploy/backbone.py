"""Backbones: any plain timm ViT by name, its weights from the package, from timm's hub or from a file.

Importing this module registers the embedded backbone with timm.
"""

import hashlib
import http.client
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from mosa_deploy import embedded
from mosa_deploy.errors import BackboneError, one_of
from mosa_deploy.seeds import derive
from mosa_deploy.shapes import shape_faults, shapes_of

Source = Literal["pretrained", "file", "random"]

PREFLIGHT_SECONDS = 5.0
"""timm retries an unreachable hub for 52 s; one request with this limit goes first."""

WAYS_ON = f"give --backbone-weights FILE, or --backbone {embedded.NAME}, which is in the package"


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from."""

    source: Source = "pretrained"
    file: Path | None = None

    @classmethod
    def choose(cls, file: Path | None, random: bool) -> "Weights":
        """From the flags `--backbone-weights FILE` and `--random-weights`.

        Raises:
            BackboneError: both are given.
        """
        if file is not None and random:
            raise BackboneError("--backbone-weights and --random-weights exclude each other: drop one")
        return cls("random" if random else "file" if file else "pretrained", file)


def load_backbone(name: str, weights: Weights | None = None, classes: int = 0, **kwargs: Any) -> VisionTransformer:
    """A timm ViT in evaluation mode, its head of `classes` outputs freshly initialised (none for 0).

    `kwargs` go to timm, e.g. `mlp_ratio` or `img_size`.

    Raises:
        BackboneError: an unknown name, not a plain ViT, or weights that cannot be had or do not fit.
    """
    weights = weights or Weights()
    check_name(name)
    if weights.source == "pretrained":
        _check_reachable(name)
        model = _create(name, pretrained=True, **kwargs)
    elif weights.source == "file":
        assert weights.file is not None
        model = _load_from_file(name, weights.file, **kwargs)
    else:
        model = _create(name, **kwargs)
        randomise(model)
    if classes:
        model.reset_classifier(classes)
    model.eval()
    return model


def check_name(name: str) -> None:
    """Raises BackboneError, with the nearest names, if timm knows no such model."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise BackboneError(one_of("backbone", architecture, timm.list_models("*vit*")))
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise BackboneError(one_of(f"weights of {architecture}:", tag, tags))


def _create(name: str, pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    except (OSError, RuntimeError, TypeError) as error:
        raise BackboneError(f"timm cannot make {name}: {_first_line(error)}; {WAYS_ON}") from error
    # A subclass has parts that a task does not own, e.g. the second head of a distilled DeiT.
    if type(model) is not VisionTransformer:
        raise BackboneError(f"{name} is a {type(model).__name__}, not a plain ViT: choose one of timm's vit_* models")
    return model


def _check_reachable(name: str) -> None:
    """Raises BackboneError if the weights are neither in the package nor in the cache and the hub does not answer."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.file or config.hf_hub_id or config.url):
        raise BackboneError(f"timm has no weights for {name}: {WAYS_ON}, or use --random-weights")
    if config.file or not config.hf_hub_id:
        return
    repository = config.hf_hub_id if config.hf_hub_id != "timm/" else f"timm/{name}"
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    fault = unreachable(f"{constants.ENDPOINT}/{repository}/resolve/main/{files[0]}")
    if fault or constants.HF_HUB_OFFLINE:
        tried = f"{constants.HF_HUB_CACHE} and {constants.ENDPOINT}"
        raise BackboneError(f"no weights for {name}: tried {tried} ({fault or 'HF_HUB_OFFLINE is set'}); {WAYS_ON}")


def unreachable(url: str) -> str | None:
    """Why `url`'s host does not answer one HEAD request within the limit; None if it answers, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PREFLIGHT_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))
    return None


def _load_from_file(name: str, file: Path, **kwargs: Any) -> VisionTransformer:
    """Weights of timm's own or the original Google names; a head in the file is left out."""
    if not file.is_file():
        raise BackboneError(f"--backbone-weights {file}: no such file")
    model = _create(name, **kwargs)
    try:
        if file.suffix == ".npz":
            model.load_pretrained(str(file))
            return model
        if file.suffix != ".safetensors":
            raise BackboneError(f"--backbone-weights {file}: give a .safetensors or .npz file")
        state = checkpoint_filter_fn(load_file(file), model)
    except (SafetensorError, zipfile.BadZipFile, KeyError, ValueError, OSError, RuntimeError) as error:
        raise BackboneError(f"--backbone-weights {file} cannot be read: {_first_line(error)}") from error
    state = {key: value for key, value in state.items() if not key.startswith(("head.", "head_dist.", "pre_logits."))}
    faults = shape_faults(shapes_of(model.state_dict()), shapes_of(state))
    if faults:
        raise BackboneError(f"--backbone-weights {file} does not fit {name}: {faults}")
    model.load_state_dict(state)
    return model


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew, as a trained model has them: no 1-D tensor stays at its constant start.

    Matrices: normal of deviation 1/sqrt(fan in); biases: of deviation 0.1 around zero (timm draws that of the patch
    embedding from the global generator); other 1-D tensors: of deviation 0.1 around where they start.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(derive(seed, "random weights", name))
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            start = torch.zeros_like(parameter) if name.endswith("bias") else parameter
            parameter.copy_(start + 0.1 * noise)


def fingerprint(state: dict[str, Tensor]) -> str:
    """sha256 over the names, shapes and fp32 bytes of a headless state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
