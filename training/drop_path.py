"""Drop path: stochastic depth for methods that tune the backbone itself."""

from typing import cast

from timm.layers import DropPath, calculate_drop_path_rates
from torch import nn

from mosa_deploy.backbones.foldable import Transformer, blocks_of


def set_drop_path(model: Transformer, rate: float) -> None:
    """Let training skip the branches of blocks for some images (arXiv 1603.09382), in place.

    Attention and FFN of block l of L are each skipped with the probability rate * l / (L - 1), l from 0, as timm does.
    """
    blocks = blocks_of(model)
    rates = cast(list[float], calculate_drop_path_rates(rate, len(blocks)))
    for block, own in zip(blocks.values(), rates, strict=True):
        for name in ("drop_path1", "drop_path2"):
            made = DropPath(own) if own else nn.Identity()
            block.set_submodule(name, made.train(block.training), strict=True)
