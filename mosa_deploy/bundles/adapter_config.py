"""The settings of adapters, and the only place of their defaults."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, get_args

from mosa_deploy.errors import ConfigError, unknown_name

T = TypeVar("T")

Share = Literal["down", "up", "none"]
Activation = Literal["per-pass", "balanced"]
Style = Literal["parallel", "low-rank", "repadapter", "ssf", "pfeiffer", "houlsby"]
Target = Literal["q", "k", "v", "qkv", "proj", "fc1", "fc2"]
Method = Literal["mosa", "adapter", "mosl", "lora", "repadapter", "ssf", "linear", "attentive", "full", "bitfit"]
"""`mosa_deploy.bundles.ownership` says what a task of each owns."""

PROBES: tuple[Method, ...] = ("linear", "attentive")
"""Methods that leave the backbone as it is: one pass of an image serves all tasks that were tuned by them."""

BackboneMethod = Literal["full", "bitfit"]
"""Methods that tune the backbone's own parameters: all of them, or its biases."""

BACKBONE_METHODS: tuple[BackboneMethod, ...] = get_args(BackboneMethod)

SPLIT_METHODS: tuple[Method, ...] = ("mosa", "mosl")
"""Methods with experts."""

SEQUENTIAL_STYLES: tuple[Style, ...] = ("pfeiffer", "houlsby")
"""Styles that read what a block has written, and so cannot be folded."""

WITHOUT_SCALE: tuple[Style, ...] = (*SEQUENTIAL_STYLES, "ssf")
"""Styles whose adapters are not multiplied by s."""

LOW_RANK_METHODS: tuple[Method, ...] = ("lora", "mosl")
"""Methods that update linear layers of the block."""

SWIN_ADVICE = "a Swin takes adapters beside its FFNs: choose method mosa, adapter or linear, style parallel"
"""The way out, where a user gives a Swin another style."""

MAX_EXPERTS = 256
"""The owner map is uint8, so no more than these can be told apart."""


class TargetSlice(NamedTuple):
    """Where a target lies in a block: part `part` of `parts` equal ones of a linear layer's outputs."""

    module: str
    part: int
    parts: int

    def start(self, outputs: int) -> int:
        """The target's first output, where the layer has `outputs` of them."""
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
"""Every target, in the order in which a block computes them."""

READERS = ("attn.qkv", "mlp.fc1")
"""The linear layers of a block before which a RepAdapter stands."""

SCALED = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
"""The operations of a block whose results SSF scales and shifts. Those of the last norm are left to the head, which is
linear and tuned."""

PATCHES = "patch_embed.proj"
"""The patch embedding, whose result SSF scales and shifts too, if all blocks have adapters."""


@dataclass(frozen=True)
class AdapterConfig:
    """The shape of an adapter of "Split & Merge", arXiv 2312.02923, in one of six styles.

    `parallel` stands beside the FFN: MoSA, or AdaptFormer with one expert. `low-rank` updates linear layers: MoSL, or
    LoRA with one expert. `repadapter` is a linear bottleneck before qkv and fc1: MoSA without a wider FFN, or
    RepAdapter with one expert. `ssf` scales and shifts, without a bottleneck or experts. `pfeiffer` and `houlsby` are
    sequential.

    Raises:
        ConfigError: a setting that cannot be; all of them are named at once.
    """

    bottleneck: int = 16
    """r, the adapter's inner width, or the rank of its updates."""
    experts: int = 4
    """E, the number of sparse parts of each split projection; 1 is a dense adapter."""
    share: Share = "down"
    """The projection that stays dense; `none` splits both."""
    scale: float = 0.1
    """s, by which the adapter's output is multiplied; sequential styles and SSF have none, so theirs is 1."""
    dropout: float = 0.1
    """The probability with which a value is dropped in training."""
    merge_scale: float | None = None
    """m, by which merging multiplies a split update; None is 1 / E, the expectation over the experts."""
    style: Style = "parallel"
    """Where the adapter stands in a block."""
    targets: tuple[Target, ...] = ()
    """The parts of each block that a low-rank adapter updates."""
    activate: Activation = "per-pass"
    """How training draws experts: one for each pass of a batch, or all of them in each, for equal groups of images."""
    blocks: int | None = None
    """K: the last K blocks have adapters; None is all of them."""
    groups: int | None = None
    """g of a RepAdapter: part i of g of its up projection reads part i of the r hidden units; None is one part."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = []
        if self.bottleneck < 1:
            faults.append(f"--bottleneck {self.bottleneck}: at least 1")
        if not 1 <= self.experts <= MAX_EXPERTS:
            faults.append(f"--experts {self.experts}: 1 to {MAX_EXPERTS}")
        if self.share not in get_args(Share):
            faults.append(unknown_name("--share", self.share, get_args(Share)))
        if self.activate not in get_args(Activation):
            faults.append(unknown_name("--activate", self.activate, get_args(Activation)))
        if self.blocks is not None and self.blocks < 1:
            faults.append(f"--adapt-blocks {self.blocks}: at least 1")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout {self.dropout}: at least 0 and below 1")
        if self.merge_scale is not None and not 0 < self.merge_scale < math.inf:
            faults.append(f"--merge-scale {self.merge_scale}: above 0")
        if self.style not in get_args(Style):
            faults.append(unknown_name("style", self.style, get_args(Style)))
        if self.style in WITHOUT_SCALE and self.scale != 1:
            faults.append(f"--scale {self.scale}: {self.style} adapters have none, leave it out")
        faults += [
            unknown_name("target", name, get_args(Target)) for name in self.targets if name not in get_args(Target)
        ]
        if len(set(self.targets)) < len(self.targets) or (self.style == "low-rank") != bool(self.targets):
            faults.append(f"targets {', '.join(self.targets) or 'none'}: low-rank adapters have some, each once")
        faults += self._group_faults()
        if faults:
            raise ConfigError("; ".join(faults))

    def _group_faults(self) -> Iterator[str]:
        groups = self.groups
        if groups is None:
            return
        if groups < 1:
            yield f"--groups {groups}: at least 1"
        elif self.style != "repadapter":
            yield f"--groups {groups}: {self.style} adapters have none, leave it out"
        elif self.experts > 1:
            yield f"--groups {groups}: experts take the place of groups, leave it out"
        elif self.bottleneck % groups:
            yield f"--groups {groups}: does not divide --bottleneck {self.bottleneck}"

    @property
    def scales_patches(self) -> bool:
        """Whether SSF scales the patch embedding; with `blocks` what comes before them stays as it is."""
        return self.style == "ssf" and self.blocks is None

    def adapted(self, blocks: Mapping[str, T]) -> dict[str, T]:
        """The blocks that have adapters, of all the blocks of a backbone in their order.

        Raises:
            ConfigError: the backbone has fewer blocks.
        """
        if self.blocks is not None and self.blocks > len(blocks):
            raise ConfigError(f"--adapt-blocks {self.blocks}: the backbone has {len(blocks)} blocks")
        return dict(list(blocks.items())[self.first(len(blocks)) :])

    def first(self, depth: int) -> int:
        """The number of the first block that has an adapter, of `depth` blocks; those before stay as they are."""
        return 0 if self.blocks is None else depth - self.blocks
