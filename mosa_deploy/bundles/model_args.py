"""What a backbone computes with its tensors: the arguments of timm's ViT that no tensor shows.

This needs the standard library alone, since backbones are also loaded where pydantic is not installed.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

Pool = Literal["token", "avg", "max", "avgmax"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


def _is_count(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: type(value) is int and low <= value <= high), f"a whole number from {low} to {high}"


def _is_one_of(choice: Any) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in get_args(choice)), f"one of {', '.join(get_args(choice))}"


def _is_eps(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


FLAG = (lambda value: type(value) is bool), "true or false"

CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "global_pool": _is_one_of(Pool),
    **dict.fromkeys(("fc_norm", "final_norm", "pool_include_prefix", "class_token", "no_embed_class"), FLAG),
    "reg_tokens": _is_count(0, 64),
    "num_heads": _is_count(1, 1024),
    "act_layer": _is_one_of(Activation),
    "norm_eps": (_is_eps, "a number between 0 and 1"),
}
"""Argument -> what holds of its value, and that in words. A stranger's record is read with it, too."""


@dataclass(frozen=True)
class ModelArgs:
    """Arguments of `timm.create_model` in which a backbone departs from timm's model of its name; None where it agrees.

    Two backbones with the same tensors and other arguments are different backbones.

    Raises:
        ValueError: a value that cannot be; all of them are named at once.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    global_pool: Pool | None = None
    fc_norm: bool | None = None
    """Whether the last norm stands after the pooling instead of before it."""
    final_norm: bool | None = None
    """Whether there is a last norm at all."""
    pool_include_prefix: bool | None = None
    class_token: bool | None = None
    reg_tokens: int | None = None
    no_embed_class: bool | None = None
    num_heads: int | None = None
    act_layer: Activation | None = None
    norm_eps: float | None = None
    """The eps of every LayerNorm, which timm takes as part of `norm_layer`."""

    def __post_init__(self) -> None:
        """Raises ValueError with every fault at once."""
        odd = [name for name, value in self.given().items() if not CHECKS[name][0](value)]
        if odd:
            raise ValueError("; ".join(f"{name} {getattr(self, name)!r}: give {CHECKS[name][1]}" for name in odd))

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        """From the settings of a file; YAML has `1e-6` as a text.

        Raises:
            ValueError: a value cannot be.
        """
        eps = settings.get("norm_eps")
        return cls(**{**settings, "norm_eps": None if eps is None else float(eps)})

    def given(self) -> dict[str, Any]:
        """The arguments that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def changed(self, update: Mapping[str, Any]) -> Self:
        """The same arguments but those of `update`."""
        return dataclasses.replace(self, **update)

    def to_json(self) -> str:
        """What is given, as compact JSON."""
        return json.dumps(self.given(), separators=(",", ":"))

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.given().items()) or "as timm has it"
