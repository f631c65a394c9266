"""What only the `config.json` of a model of Hugging Face's transformers says."""

from pathlib import Path
from typing import Any

from mosa_deploy.backbones.foldable import Vit, feed_forward
from mosa_deploy.backbones.function import set_function
from mosa_deploy.bundles.model_args import Activation, ModelArgs
from mosa_deploy.errors import BackboneError
from mosa_deploy.utils.text import read_json

CONFIG_FILE = "config.json"

DEFAULT_EPS = 1e-12
"""`layer_norm_eps` of a transformers ViT whose config does not give one; timm's is 1e-6."""

ROPE_THETA = 100.0
"""`rope_theta` of every published DINOv3, which timm's models have too."""

DEFAULTS: dict[str, tuple[str, float]] = {
    "vit_msn": ("gelu", 1e-6),
    "dinov2": ("gelu", 1e-6),
    "dinov3": ("gelu", 1e-5),
    "clip": ("quick_gelu", 1e-5),
    "siglip": ("gelu_pytorch_tanh", 1e-6),
}
"""`hidden_act` and `layer_norm_eps` by the beginning of `model_type`, where a config does not give them."""

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""`hidden_act` -> timm's `act_layer`."""


def read_config(folder: Path) -> dict[str, Any]:
    """The object in a folder's `config.json`; an empty one if there is no such file.

    Raises:
        BackboneError: the file does not hold a JSON object.
    """
    path = folder / CONFIG_FILE
    try:
        content = read_json(path) if path.is_file() else {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BackboneError(f"{path} is not a JSON object: repair it, or move it elsewhere")
    return content


def model_args(config: dict[str, Any], family: str = "") -> ModelArgs:
    """What the config of a ViT of transformers says of heads, activation and eps.

    `family` is the model's kind by its tensors, for a config that does not state it.

    Raises:
        BackboneError: its activation or its `rope_theta` is none of timm's, or a value is of no use.
    """
    kind = str(config.get("model_type") or family).lower()
    config = config | (config.get("vision_config") or {})
    known = (default for name, default in DEFAULTS.items() if kind.startswith(name))
    default_act, default_eps = next(known, ("gelu", DEFAULT_EPS))
    if kind.startswith("dinov3") and config.get("rope_theta", ROPE_THETA) != ROPE_THETA:
        raise BackboneError(f"rope_theta {config['rope_theta']}, known is {ROPE_THETA:g}")
    act = config.get("hidden_act", default_act)
    if act not in ACTIVATIONS:
        raise BackboneError(f"hidden_act {act}, known are {', '.join(ACTIVATIONS)}")
    given = {
        "num_heads": config.get("num_attention_heads"),
        "act_layer": ACTIVATIONS[act],
        "norm_eps": config.get("layer_norm_eps", default_eps),
    }
    try:
        return ModelArgs.read(given)
    except (TypeError, ValueError) as error:
        raise BackboneError(str(error)) from None


def tokens_beside(weights: Path | None) -> ModelArgs:
    """The arguments without which a ViT of timm has not the tokens of the model whose weights these are."""
    if weights is None:
        return ModelArgs()
    try:
        config = read_config(weights if weights.is_dir() else weights.parent)
    except BackboneError:  # It may be of something else: where it matters, `fit_to_config` says so.
        return ModelArgs()
    return ModelArgs(reg_tokens=1) if config.get("model_type") == "deit" else ModelArgs()


def fit_to_config(model: Vit, folder: Path, family: str = "") -> None:
    """Let `model` compute, in place, what the ViT computes whose weights lie in the folder, as its config says.

    Without a config it is what models of this `family` compute by default.

    Raises:
        BackboneError: the config is damaged, or says something that timm's ViT cannot compute.
    """
    path = folder / CONFIG_FILE
    config = read_config(folder)
    try:
        set_function(model, model_args(config, family))
    except BackboneError as error:
        raise BackboneError(f"{path} does not fit the backbone: {error}; choose another ViT") from None


def layer_norm_eps(model: Vit) -> float:
    """The eps of a model's LayerNorms."""
    return feed_forward(model.blocks[0]).norm.eps
