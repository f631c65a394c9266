"""Split: give every entry of a projection exactly one owning expert."""

import torch
from torch import Tensor

from mosa_deploy.bundles.adapter_config import MAX_EXPERTS
from mosa_deploy.errors import ConfigError


def split(shape: tuple[int, int], experts: int, generator: torch.Generator) -> Tensor:
    """Draw the owner map of a projection of the given shape (out, in), uint8.

    A random permutation of the entries is cut into `experts` parts whose sizes differ by at most one
    (Split & Merge, arXiv 2312.02923, section 3.2; there ties at a boundary may have two owners, here none has).

    Raises:
        ConfigError: fewer entries than experts, or more experts than uint8 can name.
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
