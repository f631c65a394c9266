"""Read a LoRA adapter that PEFT's `save_pretrained` wrote, and map it to timm's names.

    W' = W + f B A,   f = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`

`rank_pattern` and `alpha_pattern` may give a module its own r and lora_alpha. f is absorbed into B. Neither peft nor
transformers is needed.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator
from torch import Tensor

from mosa_deploy.backbones.checkpoints import HEAD
from mosa_deploy.backbones.containers import read_tensors
from mosa_deploy.backbones.transformers_names import timm_name
from mosa_deploy.bundles.adapter_config import TARGET_SLICES, Target
from mosa_deploy.errors import BundleError

SETTINGS = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"

IDLE = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size",
    "revision", "target_modules", "task_type",
}  # fmt: skip
"""Settings that can be ignored: they have no effect, or the tensors already show it."""

INITS = {"gaussian", "eva", "orthogonal"}
"""Initialisations that do not change the backbone's weights."""

WAY_OUT = "merge it with peft's merge_and_unload, save the state dict, and convert that with --from timm"


class Settings(BaseModel):
    """The settings of a low-rank update in `adapter_config.json`; all others are in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    r: PositiveInt = 8
    lora_alpha: float = 8
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, PositiveInt] = {}
    alpha_pattern: dict[str, float] = {}

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return value or {}

    def rank(self, module: str) -> int:
        """The rank of a module, by its name in the base model."""
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def scaling(self, module: str) -> float:
        """f, the factor of B A."""
        r = self.rank(module)
        return _by_pattern(self.alpha_pattern, module, self.lora_alpha) / (math.sqrt(r) if self.use_rslora else r)


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches the module's full name, or its end after a dot; else `default`."""
    return next((v for key, v in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{key})", module)), default)


class Update(NamedTuple):
    """A (r, in) as `down` and f B (out, r) as `up`, for one module, in fp32."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class PeftAdapter:
    """The updates by (block, target), and the head by timm's names."""

    updates: Mapping[tuple[int, Target], Update]
    head: Mapping[str, Tensor]
    dropout: float
    of_transformers: bool
    """Whether the base model is a ViT of transformers, whose head reads the class token."""

    @property
    def rank(self) -> int:
        """The largest rank of all updates."""
        return max(len(update.down) for update in self.updates.values())

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets that are updated in any block, in the order in which a block computes them."""
        return tuple(target for target in TARGET_SLICES if any(target == known for _, known in self.updates))


def read_peft(folder: Path) -> PeftAdapter:
    """Read and map an adapter.

    Raises:
        BundleError: it is damaged, or holds tensors that are not a low-rank update of a block; names all of them.
    """
    settings, tensors = read_settings(folder / SETTINGS), _tensors(folder)
    head = {name: value for name, value in tensors.items() if _timm(name) in HEAD}
    pairs = _pairs(tensors)
    odd = sorted(tensors.keys() - head.keys() - {name for pair in pairs.values() for name in pair})
    if odd:
        raise BundleError(
            f"--from peft {folder} holds {', '.join(odd)}: only linear layers of a ViT's blocks (q, k, v, qkv, proj,"
            f" fc1, fc2) and the head can be mapped; {WAY_OUT}"
        )
    if not pairs:
        raise BundleError(f"--from peft {folder} holds no update of a block: convert a head alone with --from timm")
    if len(head) < len(HEAD):
        raise BundleError(
            f"--from peft {folder} holds no head with weight and bias: save the adapter with"
            " modules_to_save=['classifier'], of a timm model ['head']"
        )
    return PeftAdapter(
        updates={place: _scaled(settings, tensors[down], tensors[up], down) for place, (down, up) in pairs.items()},
        head={_timm(name): value for name, value in head.items()},
        dropout=settings.lora_dropout,
        of_transformers="classifier.weight" in head,
    )


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of an adapter by the base model's names, in fp32.

    Raises:
        BundleError: the folder has no file of tensors.
    """
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise BundleError(f"--from peft {folder} has no {FILES[0]}: give the folder that save_pretrained wrote")
    state = read_tensors(file, "--from peft")
    return {name.removeprefix(PREFIX): value.float() for name, value in state.items()}


def _pairs(tensors: Mapping[str, Tensor]) -> dict[tuple[int, Target], tuple[str, str]]:
    """(block, target) -> names of A and B. Tensors without a partner, outside blocks or not 2-D are left out."""
    pairs: dict[tuple[int, Target], tuple[str, str]] = {}
    for down in tensors:
        place = _place(_timm(down.removesuffix(DOWN))) if down.endswith(DOWN) else None
        up = down.removesuffix(DOWN) + UP
        if place is not None and up in tensors and tensors[down].ndim == tensors[up].ndim == 2:
            pairs[place] = down, up
    return pairs


def read_settings(path: Path) -> Settings:
    """Read `adapter_config.json`.

    Raises:
        BundleError: it is missing or damaged, or has a setting that a low-rank update of weights cannot express.
    """
    try:
        settings = Settings.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; give the folder that peft's save_pretrained wrote") from None
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise BundleError(f"{path}: {'; '.join(faults)}; save the adapter again") from None
    except ValueError:
        raise BundleError(f"{path} is not a JSON object: save the adapter again") from None
    unknown = _unknown(settings)
    if unknown:
        raise BundleError(f"{path}: {', '.join(unknown)} cannot be mapped: {WAY_OUT}")
    return settings


def _unknown(settings: Settings) -> list[str]:
    """The settings that a low-rank update of the backbone's weights cannot express, with their values."""
    faults = [] if settings.peft_type == "LORA" else [f"peft_type {settings.peft_type}"]
    faults += [] if settings.bias == "none" else [f"bias {settings.bias}"]
    init = settings.init_lora_weights
    faults += [f"init_lora_weights {init}"] if isinstance(init, str) and init not in INITS else []
    extra = settings.model_extra or {}
    return faults + [f"{name} {value}" for name, value in sorted(extra.items()) if value and name not in IDLE]


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


def _scaled(settings: Settings, down: Tensor, up: Tensor, name: str) -> Update:
    """The update A, f B of a module.

    Raises:
        BundleError: the rank in the settings is not that of the tensors.
    """
    module = name.removesuffix(DOWN)
    if not len(down) == up.shape[1] == settings.rank(module):
        raise BundleError(
            f"{module} has A {tuple(down.shape)} and B {tuple(up.shape)}, {SETTINGS} says rank"
            f" {settings.rank(module)}: save the adapter again, so that the two files belong together"
        )
    return Update(down, up * settings.scaling(module))
