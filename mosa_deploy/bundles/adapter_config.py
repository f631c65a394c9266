"""The adapter's settings: the one source of their defaults."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from mosa_deploy.errors import ConfigError, unknown_name

Share = Literal["down", "up", "none"]
Style = Literal["parallel", "low-rank", "pfeiffer", "houlsby"]
Target = Literal["q", "k", "v", "qkv", "proj", "fc1", "fc2"]
Method = Literal["mosa", "adapter", "mosl", "lora", "linear", "full"]
"""`full` is every parameter tuned: such tasks are converted from elsewhere."""

SPLIT: tuple[Method, ...] = ("mosa", "mosl")
"""The methods with experts."""

SEQUENTIAL: tuple[Style, ...] = ("pfeiffer", "houlsby")
"""The styles that read what a block wrote, and so cannot fold."""

LOW_RANK: tuple[Method, ...] = ("lora", "mosl")

ON_SWIN = "a Swin takes adapters beside its FFNs: choose method mosa, adapter or linear, style parallel"

MAX_EXPERTS = 256
"""The owner map is uint8."""


class TargetSlice(NamedTuple):
    """Where a target lies in a block: one of equal parts of a linear layer's outputs."""

    module: str
    part: int
    parts: int

    def start(self, outputs: int) -> int:
        """The first output that is its own, of all of the layer's."""
        return self.part * outputs // self.parts


TARGET_SLICES: dict[Target, TargetSlice] = {
    "q": TargetSlice("attn.qkv", 0, 3),
    "k": TargetSlice("attn.qkv", 1, 3),
    "v": TargetSlice("attn.qkv", 2, 3),
    "qkv": TargetSlice("attn.qkv", 0, 1),
    "proj": TargetSlice("attn.proj", 0, 1),
    "fc1": TargetSlice("mlp.fc1", 0, 1),
    "fc2": TargetSlice("mlp.fc2", 0, 1),
}
"""In the order in which a block computes them."""


@dataclass(frozen=True)
class AdapterConfig:
    """A MoSA adapter of arXiv 2312.02923: beside the FFN (`parallel`, AdaptFormer), low-rank (MoSL) or sequential.

    One expert is the dense adapter, or LoRA.
    """

    bottleneck: int = 64
    """r, the adapter's inner width, or the rank of its updates."""
    experts: int = 4
    """E, the number of sparse parts of each split projection."""
    share: Share = "down"
    """The projection that stays dense; `none` splits both."""
    scale: float = 0.1
    """s, what the adapter's output is multiplied with; 1 for sequential styles, which have none."""
    dropout: float = 0.1
    merge_scale: float | None = None
    """What the split update is multiplied with when it is merged; 1 / E, the expectation, if None."""
    style: Style = "parallel"
    targets: tuple[Target, ...] = ()
    """What of each block a low-rank adapter updates."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = []
        if self.bottleneck < 1:
            faults.append(f"--bottleneck {self.bottleneck}: at least 1")
        if not 1 <= self.experts <= MAX_EXPERTS:
            faults.append(f"--experts {self.experts}: 1 to {MAX_EXPERTS}")
        if self.share not in get_args(Share):
            faults.append(unknown_name("--share", self.share, get_args(Share)))
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout {self.dropout}: at least 0 and below 1")
        if self.merge_scale is not None and not 0 < self.merge_scale < math.inf:
            faults.append(f"--merge-scale {self.merge_scale}: above 0")
        if self.style not in get_args(Style):
            faults.append(unknown_name("style", self.style, get_args(Style)))
        if self.style in SEQUENTIAL and self.scale != 1:
            faults.append(f"--scale {self.scale}: {self.style} adapters have none, leave it out")
        faults += [
            unknown_name("target", name, get_args(Target)) for name in self.targets if name not in get_args(Target)
        ]
        if len(set(self.targets)) < len(self.targets) or (self.style == "low-rank") != bool(self.targets):
            faults.append(f"targets {', '.join(self.targets) or 'none'}: low-rank adapters have some, each once")
        if faults:
            raise ConfigError("; ".join(faults))
