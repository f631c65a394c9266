"""The adapter's settings: the one source of their defaults."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mosa_deploy.errors import ConfigError, one_of

Share = Literal["down", "up", "none"]
Method = Literal["mosa", "adapter", "linear"]

MAX_EXPERTS = 256
"""The owner map is uint8."""


@dataclass(frozen=True)
class AdapterConfig:
    """A MoSA adapter of arXiv 2312.02923, parallel (AdaptFormer) style.

    One expert is the dense adapter.
    """

    bottleneck: int = 64
    """r, the adapter's inner width."""
    experts: int = 4
    """E, the number of sparse parts of each split projection."""
    share: Share = "down"
    """The projection that stays dense; `none` splits both."""
    scale: float = 0.1
    """s, what the adapter's output is multiplied with."""
    dropout: float = 0.1
    merge_scale: float | None = None
    """What the split update is multiplied with when it is merged; 1 / E, the expectation, if None."""

    def __post_init__(self) -> None:
        """Raises ConfigError with every fault at once."""
        faults = []
        if self.bottleneck < 1:
            faults.append(f"--bottleneck {self.bottleneck}: at least 1")
        if not 1 <= self.experts <= MAX_EXPERTS:
            faults.append(f"--experts {self.experts}: 1 to {MAX_EXPERTS}")
        if self.share not in get_args(Share):
            faults.append(one_of("--share", self.share, get_args(Share)))
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout {self.dropout}: at least 0 and below 1")
        if self.merge_scale is not None and not 0 < self.merge_scale < math.inf:
            faults.append(f"--merge-scale {self.merge_scale}: above 0")
        if faults:
            raise ConfigError("; ".join(faults))
