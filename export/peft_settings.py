"""The settings in PEFT's `adapter_config.json`: what scales an update, and what cannot be kept."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from mosa_deploy.errors import BundleError
from mosa_deploy.utils.text import read_json

SETTINGS = "adapter_config.json"

IDLE = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "feedforward_modules", "inference_mode", "init_ia3_weights", "layers_pattern",
    "layers_to_transform", "lora_bias", "megatron_config", "megatron_core", "modules_to_save", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type", "use_dora",
}  # fmt: skip
"""Settings that can be ignored: they have no effect on linear layers, or the tensors already show it."""

INITS = {"gaussian", "eva", "orthogonal"}
"""Initialisations that do not change the backbone's weights."""

KINDS = ("LORA", "IA3")
"""Kinds of adapters that end in a plain weight and bias, and whose formula is known here."""


def way_out(folder: Path) -> str:
    """How to bring an adapter that cannot be mapped."""
    return (
        f"merge it: torch.save(PeftModel.from_pretrained(model, '{folder.as_posix()}').merge_and_unload().state_dict(),"
        " 'merged.pth'), and convert that with --from timm merged.pth"
    )


class Settings(BaseModel):
    """The settings of an adapter that decide its answer; all others are in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    r: PositiveInt = 8
    lora_alpha: float = 8
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    use_rslora: bool = False
    use_dora: bool = False
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

    def idle_patterns(self, modules: Iterable[str]) -> Iterator[str]:
        """The patterns that match none of the modules that have an update, as peft does not say."""
        names = list(modules)
        for kind, patterns in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            yield from (f"{kind} {key}" for key in patterns if not any(_matches(key, name) for name in names))


def _matches(pattern: str, module: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module) is not None


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches the module's full name, or its end after a dot; else `default`."""
    return next((value for key, value in patterns.items() if _matches(key, module)), default)


def read_settings(path: Path) -> Settings:
    """Read `adapter_config.json`.

    Raises:
        BundleError: it is missing or damaged, or has a setting that does not end in a plain weight and bias.
    """
    try:
        content = read_json(path)
        kind = content.get("peft_type") if isinstance(content, dict) else None
        if isinstance(kind, str) and kind not in KINDS:
            raise BundleError(f"{path}: peft_type {kind} cannot be mapped: {way_out(path.parent)}")
        settings = Settings.model_validate(content)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; give the folder that peft's save_pretrained wrote") from None
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise BundleError(f"{path}: {'; '.join(faults)}; save the adapter again") from None
    except json.JSONDecodeError:
        raise BundleError(f"{path} is not a JSON object: save the adapter again") from None
    for patterns in (settings.rank_pattern, settings.alpha_pattern):
        for key in patterns:
            try:
                re.compile(key)
            except re.error:
                raise BundleError(
                    f"{path}: the pattern {key} is no regular expression: save the adapter again"
                ) from None
    unknown = _unknown(settings)
    if unknown:
        raise BundleError(f"{path}: {', '.join(unknown)} cannot be mapped: {way_out(path.parent)}")
    return settings


def _unknown(settings: Settings) -> list[str]:
    """The settings that do not end in a plain weight and bias known here, with their values."""
    faults = [] if settings.bias in ("none", "all", "lora_only") else [f"bias {settings.bias}"]
    init = settings.init_lora_weights
    faults += [f"init_lora_weights {init}"] if isinstance(init, str) and init not in INITS else []
    extra = settings.model_extra or {}
    return faults + [f"{name} {value}" for name, value in sorted(extra.items()) if value and name not in IDLE]
