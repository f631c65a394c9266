"""The topology of a backbone: timm's names of its blocks and its head, and how wide they are.

    ViT     blocks.<i>                   C              head         DINOv3 too
    Swin    layers.<stage>.blocks.<i>    C 2^stage      head.fc

Every other module takes names and widths from here. This needs the standard library alone, since the shared graph is
also read where pydantic is not installed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockTopology:
    """The blocks of one backbone."""

    depth: int
    """The number of blocks."""
    width: int
    """C, timm's embed_dim; a Swin's first stage has this width."""
    stages: tuple[int, ...] = ()
    """How many blocks each stage of a Swin has; empty for a ViT or a DINOv3."""

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
        """The width of the classifier's input, which is the last block's."""
        *_, last = self.blocks.values()
        return last

    def __str__(self) -> str:
        widths = " to ".join(str(width) for width in dict.fromkeys((self.width, self.features)))
        return f"{self.depth} blocks of width {widths}"
