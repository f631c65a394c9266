"""Backbones: any plain timm ViT, DINOv3 or Swin by name, its weights from the package, from timm's hub or from a file.

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
from mosa_deploy.backbones.foldable import Transformer, Vit, check_class, check_foldable
from mosa_deploy.backbones.function import created_with, published_args, set_function, without_init
from mosa_deploy.backbones.names import DINOV2_S, FROM_INDEX, as_timm
from mosa_deploy.backbones.transformers import tokens_beside
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.errors import BackboneError, unknown_name
from mosa_deploy.utils.files import FilePath
from mosa_deploy.utils.network import why_unreachable
from mosa_deploy.utils.seeds import derive

Source = Literal["pretrained", "file", "random"]


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from."""

    source: Source = "pretrained"
    file: Path | None = None

    @classmethod
    def choose(cls, file: Path | None, random: bool) -> "Weights":
        """What the flags `--backbone-weights FILE` and `--random-weights` ask for; timm's own without either.

        Raises:
            BackboneError: both are given.
        """
        if file is not None and random:
            raise BackboneError("--backbone-weights and --random-weights exclude each other: drop one")
        return cls("random" if random else "file" if file else "pretrained", file)


def load_backbone(
    name: str,
    weights: Weights | FilePath | None = None,
    classes: int = 0,
    img_size: int | tuple[int, int] | None = None,
    model_args: ModelArgs | None = None,
    **kwargs: Any,
) -> Transformer:
    """A timm ViT, DINOv3 or Swin in evaluation mode: images (B, 3, H, W) -> logits (B, classes), or features (B, C).

    The head has `classes` outputs and is freshly initialised; with 0 there is none. `weights` are timm's pretrained
    ones if None, or those of a file if a path is given. `img_size` is the side, or (H, W), of the images in pixels:
    timm resamples the position embedding, and `timm.data.resolve_model_data_config` of the model gives that size.
    `model_args` say in what it departs from timm's model; what they leave open, a `config.json` of transformers beside
    the file of weights may say. Without any, a DINOv3 pools its class token, as its authors do and timm does not.
    Other `kwargs` go to timm, e.g. `mlp_ratio`.

    Raises:
        BackboneError: timm does not know the name, the model is not a plain ViT or Swin, whole patches do not fill the
            images, or the weights cannot be had or do not fit.
    """
    if not isinstance(weights, Weights):
        weights = Weights() if weights is None else Weights("file", Path(weights))
    args = model_args or ModelArgs()
    if args.reg_tokens is None:
        args = args.changed(tokens_beside(weights.file).given())
    if model_args is None:
        kwargs = created_with(name, published_args(name)) | kwargs
    kwargs |= created_with(name, args)
    if img_size is not None:
        kwargs["img_size"] = (img_size, img_size) if isinstance(img_size, int) else img_size
    # A model that cannot be used is refused before its weights are fetched.
    outline_of(name, **kwargs)
    if weights.source == "pretrained":
        check_reachable(name)
    fetched = FROM_INDEX.get(name) if weights.source == "pretrained" else None
    model = _create(name, pretrained=weights.source == "pretrained" and fetched is None, **kwargs)
    if fetched is not None:
        load_weights(model, name, fetched.weights, name)
        cast(dict[str, Any], model.pretrained_cfg)["tag"] = name.partition(".")[2]
    elif weights.source == "file":
        assert weights.file is not None
        load_weights(model, name, weights.file)
    elif weights.source == "random":
        randomise(model)
    if isinstance(model, Vit):
        set_function(model, args)
    if img_size is not None:
        cast(dict[str, Any], model.pretrained_cfg)["input_size"] = (3, *kwargs["img_size"])
    if classes:
        model.reset_classifier(classes)
    model.eval()
    return model


def outline_of(name: str, img_size: tuple[int, int] | None = None, **kwargs: Any) -> Transformer:
    """A backbone without memory for its weights, which tells whether it can be used and how many blocks it has.

    Raises:
        BackboneError: timm does not know the name, the model is not a plain ViT or Swin, or whole patches do not fill
            the images.
    """
    check_name(name)
    if img_size is not None:
        kwargs["img_size"] = img_size
    with torch.device("meta"):
        outline = _create(name, **without_init(name), **kwargs)
    check_foldable(outline, name)
    if img_size is not None:
        _check_size(outline, *img_size)
    return outline


def check_name(name: str) -> None:
    """Raises BackboneError, with the nearest names, if timm knows no such model."""
    if name in FROM_INDEX:
        return
    if name == DINOV2_S.short:
        raise BackboneError(f"--backbone {name}: with the tag of its weights it is {DINOV2_S.name}")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        modules = ("vision_transformer", "deit", "eva", "swin_transformer", embedded.__name__.rpartition(".")[2])
        plain = [known for module in modules for known in timm.list_models(module=module)]
        said = unknown_name("backbone", architecture, plain)
        raise BackboneError(f"{said}; `mosa backbone list` shows those that are here")
    known_names = [*timm.list_pretrained(f"{architecture}.*"), *FROM_INDEX]
    tags = [known.partition(".")[2] for known in known_names if known.startswith(f"{architecture}.")]
    if tag and tag not in tags:
        raise BackboneError(unknown_name(f"weights of {architecture}:", tag, tags))


def _create(name: str, pretrained: bool = False, **kwargs: Any) -> Transformer:
    try:
        model = timm.create_model(as_timm(name), pretrained=pretrained, num_classes=0, **kwargs)
    except (OSError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        advice = f"; {other_weights()}" if pretrained else ""
        raise BackboneError(f"timm cannot make {name}: {_headline(error)}{advice}") from error
    return check_class(model, name)


def _check_size(model: Transformer, height: int, width: int) -> None:
    """Raises BackboneError unless whole patches fill the image; timm would silently cut off the rest."""
    embed: Any = model.patch_embed
    patch = embed.feat_ratio(as_scalar=False)
    if any(side % step for side, step in zip((height, width), patch, strict=True)):
        raise BackboneError(f"images of {height} x {width}: give multiples of the patch size, {patch[0]} x {patch[1]}")


def other_weights() -> str:
    """The ways on where timm's weights cannot be had."""
    fetch = "" if DINOV2_S.is_here() else f"run `{DINOV2_S.command}` and "
    return (
        f"give --backbone-weights FILE, or {fetch}give --backbone {DINOV2_S.name} ({DINOV2_S.about}), or --backbone"
        f" {embedded.NAME}, the toy in the package"
    )


def check_reachable(name: str) -> None:
    """Raises BackboneError if the weights are neither here nor in the cache, and the hub does not answer."""
    if name in FROM_INDEX:
        if not FROM_INDEX[name].is_here():
            folder = FROM_INDEX[name].weights.parent
            raise BackboneError(f"no weights for {name} in {folder}: `{FROM_INDEX[name].command}` fetches them")
        return
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.file or config.hf_hub_id or config.url):
        raise BackboneError(f"timm has no weights for {name}: {other_weights()}, or use --random-weights")
    if config.file or not config.hf_hub_id:
        return
    repository = config.hf_hub_id if config.hf_hub_id != "timm/" else f"timm/{name}"
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    fault = why_unreachable(f"{constants.ENDPOINT}/{repository}/resolve/main/{files[0]}")
    if fault or constants.HF_HUB_OFFLINE:
        tried = f"{constants.HF_HUB_CACHE} and {constants.ENDPOINT}"
        raise BackboneError(
            f"no weights for {name}: tried {tried} ({fault or 'HF_HUB_OFFLINE is set'}); {other_weights()}"
        )


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew, in place, so that no 1-D tensor keeps its constant initial value.

    Matrices are normal with standard deviation 1 / sqrt(fan in). Biases are normal around zero and other 1-D tensors
    around their initial value, both with standard deviation 0.1. (timm draws the patch embedding's bias from the global
    generator, so it cannot serve as a centre.)
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(derive(seed, "random weights", name))
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
        else:
            start = torch.zeros_like(parameter) if name.endswith("bias") else parameter
            parameter.copy_(start + 0.1 * noise)


def fingerprint(state: dict[str, Tensor], model_args: ModelArgs | None = None) -> str:
    """The sha256 of a backbone: names, shapes and fp32 bytes of its headless state dict, in the order of the names.

    With `model_args` other than timm's it is another backbone, and has another hash.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    if model_args is not None and model_args != ModelArgs():
        digest.update(model_args.to_json().encode())
    return digest.hexdigest()


def _headline(error: Exception) -> str:
    """The first two lines of an error in one; torch says only in the second what does not fit."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
