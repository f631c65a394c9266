"""An adapter on a module of the user's own: its names without what this module calls the backbone and the head.

backbone.blocks.0.attn.qkv.lora_A.weight    ->    blocks.0.attn.qkv.lora_A.weight
fc.weight                                   ->    head.weight
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mosa_deploy.backbones.transformers_names import timm_name

PART = re.compile(r"\.(?:lora_\w+(?:\.\w+)?|ia3_l|weight|bias)$")
"""What stands behind the name of a module."""

IN_BLOCK = re.compile(r"blocks\.\d+\..+")


@dataclass(frozen=True)
class Unwrapped:
    """An adapter's tensors by the names of the backbone alone."""

    tensors: dict[str, Tensor]
    prefix: str = ""
    head: str = ""
    """What the user's module calls its head, if it has one of its own."""

    def original(self, module: str) -> str:
        """The name of a module in the model that was tuned, by which patterns go."""
        return self.head if self.head and module == "head" else self.prefix + module


def unwrap(tensors: Mapping[str, Tensor]) -> Unwrapped:
    """Take the names of a user's own module away; where they are not clear, all stays as it is."""
    prefixes = {prefix for name in tensors if (prefix := _before_block(PART.sub("", name))) is not None}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    outside = {PART.sub("", name) for name in tensors if not name.startswith(prefix)}
    if not prefix or len(outside) > 1:
        return Unwrapped(dict(tensors))
    head = next(iter(outside), "")
    inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    own = {name for name in inner if re.match(r"(head|classifier)\.", name)}
    if head and own:
        return Unwrapped(dict(tensors))
    beside = {f"head{name.removeprefix(head)}": value for name, value in tensors.items() if not name.startswith(prefix)}
    return Unwrapped(inner | beside, prefix, head)


def _before_block(module: str) -> str | None:
    """What stands before the names of timm or transformers, if a module lies in a block."""
    parts = module.split(".")
    for i in range(len(parts)):
        rest = ".".join(parts[i:])
        if IN_BLOCK.fullmatch(timm_name(rest) or rest):
            return "".join(f"{part}." for part in parts[:i])
    return None
