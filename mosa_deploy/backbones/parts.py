"""Find a backbone and its head among the tensors of a checkpoint, whatever modules and entries they lie in.

    state_dict.model.backbone.blocks.0...    the backbone: everything that shares the prefix of its patch embedding
    state_dict.model.fc.weight               its head: the one linear layer beside it

What may change the answer is never left out without a word: two heads, two backbones, or a layer before the head.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mosa_deploy.backbones import torchvision_names
from mosa_deploy.backbones.transformers_names import ANCHORS, MODELS, SUPPORTED, Family, family_of, timm_state
from mosa_deploy.errors import BackboneError

ANCHOR = "patch_embed.proj.weight"
"""The tensor by which a backbone with timm's names is found; that of Swin and of self-supervised models too."""

OPENAI = "visual.class_embedding"
"""The tensor by which timm itself knows OpenAI's CLIP; its names are left to timm."""

NOT_EVALUATED = re.compile(r"momentum|student|target|encoder_k\b|online")
"""Copies of the backbone that self-supervised methods do not evaluate themselves."""

AVERAGED = re.compile(r"(^|[._])(ema|averaged?|swa)([._]|$)")
"""Averages of the weights, which their authors evaluate, as timm does."""

BACKBONE = re.compile(
    r"(blocks|layers|patch_embed|norm|norm_pre|fc_norm|rope|rope_embed|local_cls_norm)\..*|(cls|reg|dist|mask)_token"
    r"|(register|storage)_tokens|pos_embed"
)
"""Names of timm's that belong to a backbone."""

NO_LAYER = re.compile(r"(.*\.)?(\w*criterion|\w*loss\w*|\w*metrics?|(train|val|valid|test)_\w+|logit_scale)(\..*)?")
"""Tensors beside a model that do not change its answer, such as the class weights of a loss."""

HEADLIKE = re.compile(r"(\w*_)?(head|fc\d?|classifier|cls|linear|probe|logits|output)s?")
"""What people call a head."""

MANY = 20
"""More layers than a head has."""

COSINE = re.compile(r"arc_?(face|margin)|cos(ine|_?face|_?sim)|sphere_?face|margin|metric_fc|proto", re.IGNORECASE)
"""Names of heads that read features of length 1."""

HEAD_FIRST = {
    "pooler": "it may read what the pooler gives, which a bundle cannot express; if it reads the class token itself,"
    " save the state dict without the pooler",
    "attn_pool": "it reads an attention pool, which the backbone lacks: give the timm ViT with that pool",
    "distillation_classifier": "it averages two heads, which read two tokens, and a bundle has one head",
    "head_dist": "it averages two heads, which read two tokens, and a bundle has one head",
    "pre_logits": "it reads pre_logits, a layer that timm no longer has",
}
"""Layers between a backbone and its head, and why they are not left out."""


@dataclass(frozen=True)
class Found:
    """A backbone in a checkpoint."""

    prefix: str
    state: dict[str, Tensor]
    """Its tensors and those that lie within it, such as its own head, by timm's names without the prefix."""
    family: Family | None
    """The kind of model, if it is of transformers."""
    of_torchvision: bool = False
    others: tuple[str, ...] = ()
    """Where other copies of a backbone lie, which were not taken."""


@dataclass(frozen=True)
class Head:
    """A linear head: weight (K, C) and bias (K,), fp32."""

    name: str
    weight: Tensor
    bias: Tensor
    has_bias: bool
    outside: bool = False
    """Whether it lies beside the backbone, in a module of the user's own."""
    left_out: tuple[str, ...] = ()
    """Tensors beside backbone and head, which may change the answer."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By timm's names."""
        return {"head.weight": self.weight, "head.bias": self.bias}


def find_backbone(tensors: Mapping[str, Tensor], where: str) -> Found:
    """The backbone among tensors; all of them if there is none that is known.

    Raises:
        BackboneError: there are several equal ones, or one of transformers that cannot be read.
    """
    if any(".lora_A." in name for name in tensors):
        raise BackboneError(
            f"{where} holds matrices of LoRA beside the weights: save the adapter with save_pretrained, and give its"
            " folder to mosa convert --from peft"
        )
    prefixes = sorted({prefix for name in tensors if (prefix := _prefix(name)) is not None}, key=_rank)
    if not prefixes:
        return Found("", dict(tensors), None)
    best = prefixes[0]
    equal = [prefix for prefix in prefixes if _rank(prefix)[:2] == _rank(best)[:2]]
    if len(equal) > 1 and best != "":
        listed = ", ".join(prefix.removesuffix(".") for prefix in equal)
        raise BackboneError(f"{where} holds {len(equal)} backbones: {listed}; save the one that you mean by itself")
    inner = {name.removeprefix(best): value for name, value in tensors.items() if name.startswith(best)}
    family = family_of(inner)
    if family is not None and family.refused:
        raise BackboneError(f"{where} is a {family.name} of transformers: {family.refused}; {SUPPORTED}")
    of_torchvision = torchvision_names.ANCHOR in inner
    if of_torchvision:
        inner = torchvision_names.timm_state(inner)
    state = inner if family is None else timm_state(inner, family)
    return Found(best, state, family, of_torchvision, tuple(prefix.removesuffix(".") for prefix in prefixes[1:]))


def _prefix(name: str) -> str | None:
    """What stands before a backbone's own names, if this is the tensor by which one is found."""
    anchor = next(
        (
            anchor
            for anchor in (ANCHOR, OPENAI, torchvision_names.ANCHOR, *ANCHORS)
            if f".{name}".endswith(f".{anchor}")
        ),
        None,
    )
    if anchor is None:
        return None
    prefix = name.removesuffix(anchor)
    if anchor not in ANCHORS:
        return prefix
    *outer, last = prefix.removesuffix(".").split(".")
    return prefix if last not in (*MODELS, "swin", "beit") else "".join(f"{part}." for part in outer)


def _rank(prefix: str) -> tuple[bool, bool, bool, str]:
    """Copies in the order in which one is taken."""
    return bool(NOT_EVALUATED.search(prefix)), not _is_averaged(prefix), prefix != "", prefix


def _is_averaged(prefix: str) -> bool:
    return bool(AVERAGED.search(prefix)) or "teacher" in prefix


def find_head(tensors: Mapping[str, Tensor], found: Found, own: Collection[str], where: str) -> Head:
    """The linear head of a backbone: its own, or the one beside it in the module around it.

    `own` are the names of the backbone's tensors in timm.

    Raises:
        BackboneError: there is none, or several; or another layer comes before it.
    """
    inside = {name: value for name, value in found.state.items() if not (name in own or BACKBONE.fullmatch(name))}
    if found.family is not None and found.family.head.startswith("mean"):
        # A SigLIP's classifier reads no attention pool.
        inside = {name: value for name, value in inside.items() if not name.startswith("attn_pool.")}
    outer = list(_scopes(tensors, found))
    for i, scope in enumerate((inside, *outer)):
        layers = {name: value for name, value in scope.items() if value.ndim > 0 and not NO_LAYER.fullmatch(name)}
        if layers:
            _check_backbone(found, layers, where)
            head = only_linear(layers, where)
            _check_only(head, outer[i:], where)
            return replace(head, outside=i > 0, left_out=tuple(_beside(scope, head, outer[i:])))
    raise BackboneError(f"{where} has no head: give a checkpoint with its linear head")


def _check_backbone(found: Found, layers: Mapping[str, Tensor], where: str) -> None:
    """Raises BackboneError if there are many layers, but no backbone that is known."""
    anchors = (ANCHOR, OPENAI, torchvision_names.ANCHOR)
    if len(layers) > MANY and not any(name.endswith(anchors) for name in found.state):
        names = ", ".join(list(layers)[:3])
        raise BackboneError(
            f"{where} has no backbone by the names of timm, torchvision or transformers, but {names}, ...: rename its"
            " tensors as timm calls them"
        )


def _beside(scope: Mapping[str, Tensor], head: Head, outer: Iterable[Mapping[str, Tensor]]) -> Iterator[str]:
    """The names of what lies beside a head, in its module and in those around it, if it may change the answer."""
    others = (pair for other in outer for pair in other.items())
    for name, value in (*((name, value) for name, value in scope.items() if value.ndim == 0), *others):
        of_head = name.removesuffix("weight").removesuffix("bias").removesuffix(".") == head.name
        if value.is_floating_point() and not of_head and not NO_LAYER.fullmatch(name):
            yield name


def _check_only(head: Head, outer: Iterable[Mapping[str, Tensor]], where: str) -> None:
    """Raises BackboneError if a module further out has a head too."""
    for scope in outer:
        for name, value in scope.items():
            if _is_weight(name) and value.ndim == 2 and HEADLIKE.fullmatch(name.partition(".")[0]):
                raise BackboneError(
                    f"{where} has two heads ({head.name}.weight, {name}): save it without the one that is not used"
                )


def _scopes(tensors: Mapping[str, Tensor], found: Found) -> Iterator[dict[str, Tensor]]:
    """What lies beside the backbone, in the module around it, then around that one."""
    inner = found.prefix
    others = tuple(f"{other}." for other in found.others)
    while inner:
        outer = "".join(f"{part}." for part in inner.removesuffix(".").split(".")[:-1])
        skipped = {outer + other.removeprefix(outer).partition(".")[0] + "." for other in others}
        yield {
            name.removeprefix(outer): value
            for name, value in tensors.items()
            if name.startswith(outer) and not name.startswith((inner, *skipped))
        }
        inner = outer


def only_linear(layers: Mapping[str, Tensor], where: str) -> Head:
    """The one linear layer among these tensors.

    Raises:
        BackboneError: there are other layers too, or none that is linear.
    """
    linear = [name.removesuffix("weight") for name, value in layers.items() if _is_weight(name) and value.ndim == 2]
    rest = [name for name in layers if name.removesuffix("weight").removesuffix("bias") not in linear]
    reason = next((HEAD_FIRST[part] for name in layers for part in name.split(".") if part in HEAD_FIRST), "")
    if len(linear) == 1 and COSINE.search(linear[0]):
        raise BackboneError(
            f"{where} has a head {linear[0]}weight, by its name one that compares directions, as ArcFace does: a"
            " bundle's head is linear; call it head.weight if it is too"
        )
    if len(linear) == 1 and not rest and not reason:
        weight = layers[f"{linear[0]}weight"].float()
        bias = layers.get(f"{linear[0]}bias")
        zeros = torch.zeros(len(weight))
        return Head(linear[0].removesuffix("."), weight, zeros if bias is None else bias.float(), bias is not None)
    odd = [name for name, value in layers.items() if not value.is_floating_point()]
    if odd:
        raise BackboneError(f"{where} holds {odd[0]} in {layers[odd[0]].dtype}: save it in floating point")
    names = ", ".join(list(layers)[:6]) + (", ..." if len(layers) > 6 else "")
    if any(name.endswith(("weight_g", "weight.original0")) for name in layers):
        raise BackboneError(f"{where} has a head with weight norm ({names}): remove it, so that weight is one tensor")
    if not linear:
        raise BackboneError(f"{where} has no linear head ({names}): name its tensors weight (K, C) and bias (K,)")
    reason = reason or "a bundle's head is one linear layer: merge these layers into one, or tune a head again"
    raise BackboneError(f"{where} has more than a linear head ({names}): {reason}")


def _is_weight(name: str) -> bool:
    return name == "weight" or name.endswith(".weight")
