"""Read an adapter that PEFT's `save_pretrained` wrote, and map it to timm's names, without peft or transformers.

    LoRA           W' = W + f B A,   f = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`
    its biases     b' = b + f c  of `lora_bias`; b' itself of `bias="all"` and `"lora_only"`
    DoRA           W' = m (W + f B A) / |W + f B A|,   the norm of each output
    IA3            W' = l W, b' = l b of outputs;  W' = W l of inputs

`rank_pattern` and `alpha_pattern` may give a module its own r and lora_alpha. f is absorbed into B. A LoRA alone
becomes a `lora` task; all others end in a plain weight and bias, and become a `full` one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from export.peft_settings import SETTINGS, Settings, read_settings, way_out
from export.peft_tensors import choose_adapter, read_adapter_tensors
from export.peft_wrapped import unwrap
from mosa_deploy.backbones.checkpoints import HEAD
from mosa_deploy.backbones.transformers_names import (
    CLIP,
    DEIT,
    DINOV2,
    DINOV3,
    IJEPA,
    MODELS,
    OF_DINOV3,
    SIGLIP,
    VIT,
    Family,
    timm_name,
)
from mosa_deploy.bundles.adapter_config import TARGET_SLICES, Target
from mosa_deploy.errors import BundleError

PARTS = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "ia3_l")
"""The tensors of an update, after the name of its module."""

PARAMETER = re.compile(
    r"blocks\.\d+\.(norm1|norm2|attn\.(q|k|v|qkv|proj)|mlp\.fc[12])\.(weight|bias)"
    r"|blocks\.\d+\.(ls[12]\.gamma|gamma_[12]|attn\.[qv]_bias)"
    r"|(norm|norm_pre|fc_norm|patch_embed\.proj)\.(weight|bias)|cls_token|pos_embed|reg_token"
)
"""Parameters of a backbone that an adapter may hold whole, by timm's names."""

NAMED = 6
"""How many tensors an error names."""

POOL = "vision_model.head"
"""The attention pool of SigLIP, whose layers have names that target modules often match."""

MODULE = re.compile(r"blocks\.\d+\.(attn\.(q|k|v|qkv|proj)|mlp\.fc[12])|patch_embed\.proj|head")
"""Layers that an adapter may update, by timm's names."""


class Update(NamedTuple):
    """A (r, in) as `down` and f B (out, r) as `up`, for one module, in fp32."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class Change:
    """What an adapter does to one layer."""

    update: Update | None = None
    bias: Tensor | None = None
    """f c, which is added to the layer's bias."""
    magnitude: Tensor | None = None
    """m of DoRA, one for each output."""
    factor: Tensor | None = None
    """l of IA3: (out, 1) or (1, in)."""


@dataclass(frozen=True)
class PeftAdapter:
    """The changes by timm's names of modules, the head, and the parameters that were tuned whole."""

    changes: Mapping[str, Change]
    head: Mapping[str, Tensor]
    """Empty where the adapter updates the base model's head."""
    dropout: float
    of_transformers: bool
    """Whether the base model is one of transformers."""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters of the backbone that were tuned whole, such as biases and norms."""
    model: str | None = None
    """What a model of transformers calls its backbone, such as `vit` or `dinov2`."""
    notes: tuple[str, ...] = ()
    """What peft does not say either."""

    @property
    def updates(self) -> dict[tuple[int, Target], Update]:
        """The low-rank updates of a block's layers by (block, target)."""
        found = {_place(name): change.update for name, change in self.changes.items()}
        return {place: update for place, update in found.items() if place is not None and update is not None}

    @property
    def is_low_rank(self) -> bool:
        """Whether nothing but low-rank updates of blocks' layers was tuned, and the head."""
        return not self.whole and all(
            change == Change(change.update) and (name == "head" or _place(name) is not None)
            for name, change in self.changes.items()
        )

    def family(self, has_class_token: bool) -> Family | None:
        """The kind of its base model, where that is one of transformers."""
        if not self.of_transformers:
            return None
        towers = CLIP if has_class_token else SIGLIP
        known = {
            "deit": DEIT,
            "dinov2": DINOV2,
            "dinov2_with_registers": DINOV2,
            "dinov3": DINOV3,
            "ijepa": IJEPA,
            "vision_model": towers,
        }
        return known.get(self.model or "", VIT)

    @property
    def rank(self) -> int:
        """The largest rank of all updates."""
        return max(len(update.down) for update in self.updates.values())

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets that are updated in any block, in the order in which a block computes them."""
        return tuple(target for target in TARGET_SLICES if any(target == known for _, known in self.updates))


def read_peft(folder: Path, adapter: str | None = None) -> PeftAdapter:
    """Read and map an adapter; `adapter` chooses one of several.

    Raises:
        BundleError: it is damaged, or holds tensors that are not known to end in a plain weight and bias; names them.
    """
    folder = choose_adapter(folder, adapter)
    settings, wrapped = read_settings(folder / SETTINGS), unwrap(read_adapter_tensors(folder, adapter))
    everything = wrapped.tensors
    tensors = {name: value for name, value in everything.items() if not _is_unread(name, everything)}
    own, parts = {name: _timm(name) for name in tensors}, _parts(tensors)
    used = {f"{module}.{part}" for module, found in parts.items() for part in found}
    whole = {name for name in tensors if PARAMETER.fullmatch(own[name])}
    head = {name for name in tensors if own[name] in HEAD}
    odd = {f"{module}.{part}" for module, found in parts.items() if not _is_whole(module, found) for part in found}
    odd |= tensors.keys() - used - whole - head
    _check_mapped(odd, folder)
    if not parts and not whole:
        raise BundleError(f"--from peft {folder} holds no update of a block: convert a head alone with --from timm")
    _check_saved(settings, parts, tensors, folder)
    found_head = {own[name]: tensors[name] for name in head}
    updates_head = any(_timm(module) == "head" for module in parts)
    if len(found_head) < len(HEAD) and not updates_head:
        raise BundleError(
            f"--from peft {folder} holds no head with weight and bias: save the adapter with"
            " modules_to_save=['classifier'], of a timm model ['head']"
        )
    notes = [
        f"{pattern} matches no layer, in peft neither"
        for pattern in settings.idle_patterns(map(wrapped.original, parts))
    ]
    if wrapped.head:
        notes.append(f"its head {wrapped.head} is taken to read what the backbone gives")
    if len(tensors) < len(everything):
        notes.append(f"what was tuned in {POOL} is left out: the classifier of SigLIP does not read that pool")
    return PeftAdapter(
        changes={_timm(module): _change(settings, wrapped.original(module), found) for module, found in parts.items()},
        head={} if updates_head else found_head,
        dropout=settings.lora_dropout,
        of_transformers=any(timm_name(name.rpartition(".lora_")[0] or name) is not None for name in tensors),
        whole={own[name]: tensors[name] for name in whole},
        model=_model_of(tensors),
        notes=tuple(notes),
    )


def _model_of(tensors: Mapping[str, Tensor]) -> str | None:
    """What a model of transformers calls its backbone; a DINOv3 has no classifier around it that would name it."""
    if any(OF_DINOV3.fullmatch(name) for name in tensors):
        return "dinov3"
    return next((first for name in tensors if (first := name.partition(".")[0]) in MODELS), None)


def _check_mapped(odd: set[str], folder: Path) -> None:
    """Raises BundleError if there are tensors that cannot be mapped."""
    if odd and all(name.startswith(("head.", "classifier.")) for name in odd):
        raise BundleError(
            f"--from peft {folder} has a head of several layers ({', '.join(sorted(odd)[:NAMED])}): a bundle's head is"
            " one linear layer; merge these layers into one, or tune a head again"
        )
    if odd:
        names = ", ".join(sorted(odd)[:NAMED]) + (f" and {len(odd) - NAMED} more" if len(odd) > NAMED else "")
        raise BundleError(
            f"--from peft {folder} holds {names}: only linear layers of a ViT's blocks (q, k, v, qkv,"
            f" proj, fc1, fc2), its patch embedding, norms, biases and the head can be mapped; {way_out(folder)}"
        )


def _is_unread(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor belongs to SigLIP's attention pool, beside a classifier that reads the mean of the tokens."""
    return name.startswith(f"{POOL}.") and any(other.startswith("classifier.") for other in tensors)


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of every update, by its module in the base model."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part = next((part for part in PARTS if name.endswith(f".{part}")), None)
        if part is not None:
            parts.setdefault(name.removesuffix(f".{part}"), {})[part] = value
    return parts


def _timm(name: str) -> str:
    """The name of a module or parameter in timm. A name that is already timm's stays as it is."""
    return timm_name(name) or name


def _place(name: str) -> tuple[int, Target] | None:
    """(block, target) of a layer by timm's name, e.g. `blocks.3.attn.q`; None for any other layer."""
    found = re.fullmatch(r"blocks\.(\d+)\.(attn|mlp)\.(\w+)", name)
    if found is None:
        return None
    target = next((target for target in TARGET_SLICES if target == found[3]), None)
    if target is None or not TARGET_SLICES[target].module.startswith(f"{found[2]}."):
        return None
    return int(found[1]), target


def _is_whole(module: str, parts: Mapping[str, Tensor]) -> bool:
    """Whether a module is one that can be updated, and has all tensors of its update, in shapes that fit each other."""
    if MODULE.fullmatch(_timm(module)) is None:
        return False
    if "ia3_l" in parts:
        return len(parts) == 1 and parts["ia3_l"].ndim == 2
    down, up = parts.get("lora_A.weight"), parts.get("lora_B.weight")
    linear = 4 if _timm(module) == "patch_embed.proj" else 2
    return down is not None and up is not None and down.ndim == up.ndim == linear


def _check_saved(
    settings: Settings, parts: Mapping[str, Mapping[str, Tensor]], tensors: Mapping[str, Tensor], folder: Path
) -> None:
    """Raises BundleError if the settings name tuned tensors that the file lacks."""
    lacking = []
    if settings.use_dora:
        magnitude = "lora_magnitude_vector"
        lacking += [f"{module}.{magnitude}" for module, found in parts.items() if magnitude not in found]
    biases = [name for name in tensors if name.endswith(".bias") and "lora_" not in name and _timm(name) not in HEAD]
    if settings.bias == "all" and not biases:
        lacking.append("the biases of all layers")
    if settings.bias == "lora_only":
        lacking += [f"{module}.bias" for module in parts if f"{module}.bias" not in tensors]
    if lacking:
        raise BundleError(
            f"--from peft {folder} lacks {', '.join(lacking[:3])}, which were tuned as {SETTINGS} says: some releases"
            f" of peft do not save them; {way_out(folder)}"
        )


def _change(settings: Settings, module: str, parts: Mapping[str, Tensor]) -> Change:
    """What is done to a module.

    Raises:
        BundleError: the rank in the settings is not that of the tensors.
    """
    if "ia3_l" in parts:
        return Change(factor=parts["ia3_l"])
    down, up = parts["lora_A.weight"], parts["lora_B.weight"]
    if not len(down) == up.shape[1] == settings.rank(module):
        raise BundleError(
            f"{module} has A {tuple(down.shape)} and B {tuple(up.shape)}, {SETTINGS} says rank"
            f" {settings.rank(module)}: save the adapter again, so that the two files belong together"
        )
    scaling, bias = settings.scaling(module), parts.get("lora_B.bias")
    magnitude = parts.get("lora_magnitude_vector")
    return Change(
        Update(down, up * scaling),
        None if bias is None else bias * scaling,
        None if magnitude is None else magnitude.flatten(),
    )
