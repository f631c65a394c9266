"""What a ViT computes with its tensors: read from a model, set in one, and told apart from timm's own."""

from functools import cache
from typing import Any, get_args

import timm
import torch
from timm.layers import Attention, AttentionPoolLatent, get_act_layer
from timm.models.eva import Eva
from torch import nn

from mosa_deploy.backbones.foldable import Transformer, Vit
from mosa_deploy.backbones.names import as_timm
from mosa_deploy.bundles.model_args import Activation, ModelArgs, Pool
from mosa_deploy.errors import BackboneError

ACTIVATIONS: dict[str, Activation] = {
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}
"""The class of an activation -> timm's name."""


IN_PLACE = ("num_heads", "act_layer", "norm_eps")
"""What `set_function` sets."""


EVAS = {"fc_norm": "use_fc_norm", "final_norm": "use_post_transformer_norm", "reg_tokens": "num_reg_tokens"}
"""What timm's `Eva` calls the arguments of its ViT."""


def created_with(name: str, args: ModelArgs) -> dict[str, Any]:
    """The arguments for `timm.create_model`; what that does not take is set by `set_function`."""
    eva = _is_eva(name)
    later = ("norm_eps", "act_layer") if eva else ("norm_eps",)
    given = {key: value for key, value in args.given().items() if key not in later}
    return {EVAS.get(key, key): value for key, value in given.items()} if eva else given


def published_args(name: str) -> ModelArgs:
    """What a backbone computes if nobody says otherwise: what timm has, but for DINOv3.

    Its authors read the class token, which timm's model takes part in only if it is asked to.
    """
    return ModelArgs(global_pool="token") if "_dinov3" in name.partition(".")[0] and _is_eva(name) else ModelArgs()


def _is_eva(name: str) -> bool:
    return timm.models.is_model_in_modules(name.partition(".")[0], ["eva"])


@torch.no_grad()
def set_function(model: Vit, args: ModelArgs) -> None:
    """Set the heads, the activation and the eps of a model, in place. None leaves a part as it is.

    Raises:
        BackboneError: the width cannot be divided among so many heads, or positions turn another number of them.
    """
    heads = args.num_heads
    if heads is not None and model.embed_dim % heads:
        raise BackboneError(f"num_heads {heads} does not divide the backbone's width {model.embed_dim}")
    if isinstance(model, Eva) and heads not in (None, own := arguments(model)["num_heads"]):
        raise BackboneError(f"num_heads {heads}: this backbone turns {own} heads by their positions")
    # An attention pool has heads and an FFN of its own, of the same kind.
    pools = [(pool, pool.mlp) for pool in model.modules() if isinstance(pool, AttentionPoolLatent)]
    for attention, mlp in [
        *((block.get_submodule("attn"), block.get_submodule("mlp")) for block in model.blocks),
        *pools,
    ]:
        act = mlp.get_submodule("act")
        if heads is not None and isinstance(attention, Attention | AttentionPoolLatent):
            attention.num_heads, attention.head_dim = heads, model.embed_dim // heads
            attention.scale = attention.head_dim**-0.5
        if args.act_layer not in (None, _activation(act)):
            mlp.act = get_act_layer(args.act_layer)()
    for part in model.modules():
        if args.norm_eps is not None and isinstance(part, nn.LayerNorm):
            part.eps = args.norm_eps


def pinned(name: str, args: ModelArgs) -> ModelArgs:
    """Arguments that leave nothing open which `set_function` could set: timm's own for those that are None."""
    timms = _timms(name)
    open_ = {key: value for key, value in timms.items() if key in IN_PLACE and getattr(args, key) is None}
    if open_.get("act_layer") not in get_args(Activation):
        open_.pop("act_layer", None)
    return args.changed(open_)


def departures(name: str, model: Transformer) -> ModelArgs:
    """In what a model differs from timm's model of that name, of which it may have the tensors.

    Raises:
        BackboneError: it pools or activates in a way that a record cannot state.
    """
    if not isinstance(model, Vit):
        return ModelArgs()
    own, timms = arguments(model), _timms(name)
    other = {key: value for key, value in own.items() if value != timms[key]}
    if "global_pool" in other:
        other["fc_norm"] = own["fc_norm"]  # Without it timm would choose by the pooling.
    known: dict[str, tuple[Any, ...]] = {"global_pool": get_args(Pool), "act_layer": get_args(Activation)}
    odd = [f"{key} {other[key]!r}" for key, values in known.items() if key in other and other[key] not in values]
    if odd:
        raise BackboneError(f"{name} with {', '.join(odd)} cannot be kept: tune a model without that")
    return ModelArgs(**other)


def arguments(model: Vit) -> dict[str, Any]:
    """What a model computes with its tensors, by the names that timm's ViT has for its arguments."""
    block = model.blocks[0]
    inner: Any = getattr(block, "block", block)  # An adapted block holds timm's, and so does an adapted norm.
    attention, norm = inner.attn, getattr(inner.norm2, "layer", inner.norm2)
    return {
        "global_pool": model.global_pool,
        "fc_norm": not isinstance(model.fc_norm, nn.Identity),
        "final_norm": not (isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity)),
        "pool_include_prefix": getattr(model, "pool_include_prefix", False),
        "class_token": model.cls_token is not None,
        "reg_tokens": 0 if model.reg_token is None else model.reg_token.shape[1],
        "no_embed_class": model.no_embed_class,
        "num_heads": getattr(attention, "num_heads", None),
        "act_layer": _activation(inner.mlp.act),
        "norm_eps": getattr(norm, "eps", None),
    }


def _activation(act: nn.Module) -> str:
    """The name of an activation in timm, or its class if it has none here."""
    kind = type(act).__name__
    return "gelu_tanh" if getattr(act, "approximate", "none") == "tanh" else ACTIVATIONS.get(kind, kind)


def without_init(name: str) -> dict[str, Any]:
    """The argument of timm's ViTs and Swins that leaves their weights as they are: for outlines that hold none."""
    own = timm.models.is_model_in_modules(name.partition(".")[0], ("vision_transformer", "deit", "swin_transformer"))
    return {"weight_init": "skip"} if own else {}


@cache
def _timms(name: str) -> dict[str, Any]:
    """The arguments of timm's own model; none for a Swin."""
    with torch.device("meta"):
        model = timm.create_model(as_timm(name), num_classes=0, **without_init(name))
    return arguments(model) if isinstance(model, Vit) else {}
