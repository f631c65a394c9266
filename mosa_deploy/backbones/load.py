"""Backbones: any plain timm ViT or Swin by name, its weights from the package, from timm's hub or from a file.

Importing this module registers the embedded backbone with timm.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor

from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.checkpoints import load_weights
from mosa_deploy.backbones.foldable import Transformer, check_class, check_foldable
from mosa_deploy.errors import BackboneError, unknown_name
from mosa_deploy.utils.network import unreachable
from mosa_deploy.utils.seeds import derive

Source = Literal["pretrained", "file", "random"]

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


def load_backbone(
    name: str,
    weights: Weights | None = None,
    classes: int = 0,
    img_size: int | tuple[int, int] | None = None,
    **kwargs: Any,
) -> Transformer:
    """A timm ViT or Swin in evaluation mode, its head of `classes` outputs freshly initialised (none for 0).

    `img_size` is the side, or (H, W), of its images in pixels: timm resamples the position embedding, and
    `timm.data.resolve_model_data_config` of the model gives that size. Other `kwargs` go to timm, e.g. `mlp_ratio`.

    Raises:
        BackboneError: an unknown name, not a plain ViT or Swin, or weights that cannot be had or do not fit.
    """
    weights = weights or Weights()
    check_name(name)
    if img_size is not None:
        kwargs["img_size"] = (img_size, img_size) if isinstance(img_size, int) else img_size
    # Without memory for the weights, so that a model that cannot be used is refused before any are fetched.
    with torch.device("meta"):
        outline = _create(name, **kwargs)
    check_foldable(outline, name)
    if img_size is not None:
        _check_size(outline, *kwargs["img_size"])
    if weights.source == "pretrained":
        _check_reachable(name)
    model = _create(name, pretrained=weights.source == "pretrained", **kwargs)
    if weights.source == "file":
        assert weights.file is not None
        load_weights(model, name, weights.file)
    elif weights.source == "random":
        randomise(model)
    if img_size is not None:
        cast(dict[str, Any], model.pretrained_cfg)["input_size"] = (3, *kwargs["img_size"])
    if classes:
        model.reset_classifier(classes)
    model.eval()
    return model


def check_name(name: str) -> None:
    """Raises BackboneError, with the nearest names, if timm knows no such model."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        modules = ("vision_transformer", "deit", "swin_transformer", embedded.__name__.rpartition(".")[2])
        plain = [known for module in modules for known in timm.list_models(module=module)]
        raise BackboneError(unknown_name("backbone", architecture, plain))
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise BackboneError(unknown_name(f"weights of {architecture}:", tag, tags))


def _create(name: str, pretrained: bool = False, **kwargs: Any) -> Transformer:
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    except (OSError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        way_on = f"; {WAYS_ON}" if pretrained else ""
        raise BackboneError(f"timm cannot make {name}: {_headline(error)}{way_on}") from error
    return check_class(model, name)


def _check_size(model: Transformer, height: int, width: int) -> None:
    """Raises BackboneError unless whole patches fill an image: what is left over would be cut off without a word."""
    embed: Any = model.patch_embed
    patch = embed.feat_ratio(as_scalar=False)
    if any(side % step for side, step in zip((height, width), patch, strict=True)):
        raise BackboneError(f"images of {height} x {width}: give multiples of the patch size, {patch[0]} x {patch[1]}")


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


def _headline(error: Exception) -> str:
    """What it says first; torch says only in its second line what does not fit."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
