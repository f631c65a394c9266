"""Split a projection among experts: the owner map, and the linear layer that reads it.

MoSA, "Split & Merge", arXiv 2312.02923.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mosa_deploy.bundles.adapter_config import MAX_EXPERTS, Activation, AdapterConfig
from mosa_deploy.errors import ConfigError


def split(shape: tuple[int, int], experts: int, generator: torch.Generator) -> Tensor:
    """Draw the owner map of a projection: uint8, of the given shape (out, in), with the expert that owns each entry.

    A random permutation of the entries is cut into `experts` parts whose sizes differ by at most one (arXiv
    2312.02923, section 3.2). The paper lets two experts own an entry when ties occur at a boundary; here every entry
    has exactly one owner.

    Raises:
        ConfigError: there are fewer entries than experts, or more experts than uint8 can number.
    """
    entries = shape[0] * shape[1]
    if not 1 <= experts <= min(entries, MAX_EXPERTS):
        raise ConfigError(
            f"--experts {experts} does not fit a {shape[0]}x{shape[1]} projection:"
            f" choose 1 to {min(entries, MAX_EXPERTS)}"
        )
    part = (torch.arange(entries) * experts // entries).to(torch.uint8)
    owner = torch.empty(entries, dtype=torch.uint8)
    owner[torch.randperm(entries, generator=generator)] = part
    return owner.view(shape)


class SplitLinear(nn.Module):
    """A linear layer whose update Delta is divided among E experts: one weight and one owner map, never E copies.

        training:    W_k = W0 + Delta * [owner == k]    b_k = bias[k]       one expert k drawn per group of images
        evaluation:  W   = W0 + m * Delta               b   = mean(bias)    with m = 1 / E, the expectation over k

    A training batch holds `passes` equal parts, one after the other. Activated `per-pass`, a part is one group and
    draws its own expert (arXiv 2312.02923, section 3.2). Activated `balanced`, a part is cut into E groups, which get
    the E experts in a random order: each image's expert is as likely as before, and every step trains all experts.
    With `dense` no expert is drawn: training uses the merged weight too. `merge_scale` is m; it is 1 / E if None is
    given.

    Every forward pass draws, unless the experts of a whole step are held (`adapters.draws`).
    """

    base: Tensor
    owner: Tensor
    bias: nn.Parameter

    def __init__(
        self,
        base: Tensor,
        bias: Tensor | None,
        owner: Tensor,
        experts: int,
        generator: torch.Generator,
        merge_scale: float | None = None,
        activate: Activation = "per-pass",
    ) -> None:
        """`base` is W0 and `owner` its map, both (out, in); `bias` (out,) is where every expert's own bias starts."""
        super().__init__()
        self.experts = experts
        self.merge_scale = 1 / experts if merge_scale is None else merge_scale
        self.activate = activate
        self.passes = 1
        self.dense = False
        self.drawn: Sequence[int] = ()
        self.held = False
        """Whether forward passes use `drawn` as it is, for groups of these `sizes`."""
        self.sizes: Sequence[int] = ()
        self.generator = generator
        self.weight = nn.Parameter(torch.zeros_like(base))
        # As in nn.Linear, a layer without a bias has None here, whatever the annotation says.
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().repeat(experts, 1)))
        self.register_buffer("base", base.detach().clone())
        self.register_buffer("owner", owner)

    @classmethod
    def from_base(cls, linear: nn.Linear, config: AdapterConfig, generator: torch.Generator) -> Self:
        """Split a dense layer: its weight becomes W0, and Delta starts at zero.

        Raises:
            ConfigError: the layer has fewer entries than `config.experts`.
        """
        owner = split((linear.out_features, linear.in_features), config.experts, generator)
        return cls(linear.weight, linear.bias, owner, config.experts, generator, config.merge_scale, config.activate)

    def expert(self, k: int) -> tuple[Tensor, Tensor | None]:
        """W_k (out, in) and b_k (out,): the layer while expert k is active."""
        return self.base + self.weight * (self.owner == k), None if self.bias is None else self.bias[k]

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """W (out, in) and b (out,): the layer with all experts merged."""
        return self.base + self.merge_scale * self.weight, None if self.bias is None else self.bias.mean(0)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); in training the first dimension is a multiple of `passes`."""
        if self.dense or not self.training:
            return F.linear(x, *self.merged())
        if not self.held:
            self.drawn, self.sizes = self.draw(), ()
        return self.by_experts(x, self.drawn, self.sizes)

    def draw(self) -> list[int]:
        """The experts of a training batch, one per group: `passes` of them, or `passes` times all in random orders."""
        if self.activate == "per-pass":
            drawn = torch.randint(self.experts, (self.passes,), generator=self.generator)
        else:
            orders = [torch.randperm(self.experts, generator=self.generator) for _ in range(self.passes)]
            drawn = torch.cat(orders)
        return [int(k) for k in drawn]

    @property
    def groups(self) -> int:
        """The number of groups of a pass."""
        return 1 if self.activate == "per-pass" else self.experts

    def by_experts(self, x: Tensor, drawn: Sequence[int], sizes: Sequence[int] = ()) -> Tensor:
        """(..., in) -> (..., out), with the expert of each group given.

        `sizes` are the numbers of images in the groups of a pass. Without them the groups differ by at most one image;
        fewer images than groups leave the last groups empty, so that each image has an expert of its own.
        """
        count = len(drawn) // self.passes
        parts = x.chunk(self.passes)
        groups = [group for part in parts for group in (part.split(list(sizes)) if sizes else part.tensor_split(count))]
        experts = {k: self.expert(k) for k in set(drawn)}
        return torch.cat([F.linear(group, *experts[k]) for group, k in zip(groups, drawn, strict=True)])

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The dense layer with the merged weight and bias, which evaluation uses."""
        weight, bias = self.merged()
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs, bias is not None, device=weight.device, dtype=weight.dtype)
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
        return linear
