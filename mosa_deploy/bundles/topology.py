"""The topology of a backbone's blocks: by what names its blocks and its head go in timm, and how wide they are.

    ViT     blocks.<i>                   C              head
    Swin    layers.<stage>.blocks.<i>    C 2^stage      head.fc

Every other part asks here. Only the standard library: the shared graph is read where there is no pydantic.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockTopology:
    """Of one backbone."""

    depth: int
    """The number of blocks."""
    width: int
    """C, timm's embed_dim; in a Swin that of the first stage."""
    stages: tuple[int, ...] = ()
    """How many blocks each stage of a Swin has; empty for a ViT."""

    @property
    def blocks(self) -> dict[str, int]:
        """Name -> width of every block, in the order in which they run."""
        if not self.stages:
            return {f"blocks.{i}": self.width for i in range(self.depth)}
        return {
            f"layers.{stage}.blocks.{i}": self.width * 2**stage
            for stage, blocks in enumerate(self.stages)
            for i in range(blocks)
        }

    @property
    def head(self) -> str:
        """The name of the classifier."""
        return "head.fc" if self.stages else "head"

    @property
    def features(self) -> int:
        """How wide is what the classifier reads: as the last block."""
        *_, last = self.blocks.values()
        return last

    def __str__(self) -> str:
        widths = " to ".join(str(width) for width in dict.fromkeys((self.width, self.features)))
        return f"{self.depth} blocks of width {widths}"
