"""What the head of a task without adapters reads: the features of the frozen backbone, and where they lie.

    cls         z_L                     what timm's own head reads: the class token, or the backbone's pooled feature
    cls+mean    z_L, m                  and the mean of the patches
    blocks      z_{L-3}, ..., z_L, m    the class tokens of the last four blocks, and the mean of the patches
    attended    sum_n w_n x_n           the patches, weighed by a learned query q: w = softmax(x q / sqrt(C))

x are the patches of the last block, m is their mean, and z_l is the class token of block l, all after the backbone's
last norm. In a backbone without a class token the mean of a block's patches stands for it. One of fewer blocks gives
all of them.

One pass gives all of these, in the columns of one row: z_{L-3}, z_{L-2}, z_{L-1}, z_L, m, a_0, a_1, ... with one a for
each slot of the bank of queries. So the features of every head lie side by side, and it reads no others. This needs the
standard library alone.
"""

from typing import Literal

from mosa_deploy.bundles.topology import BlockTopology

LinearFeatures = Literal["cls", "cls+mean", "blocks"]
"""The features that a logistic regression is fitted on."""

Features = Literal["cls", "cls+mean", "blocks", "attended"]

LAST_BLOCKS = 4

QUERY = "query"
"""The tensor by which an attentive probe weighs the patches."""


def earlier_blocks(topology: BlockTopology) -> int:
    """How many blocks before the last one give their class token."""
    return min(LAST_BLOCKS, topology.depth) - 1


def columns(features: Features, topology: BlockTopology, slot: int = 0) -> slice:
    """The columns that a head reads in the row of all features; `slot` is that of its query, if it has one."""
    width, earlier = topology.features, earlier_blocks(topology)
    first, count = {
        "cls": (earlier, 1),
        "cls+mean": (earlier, 2),
        "blocks": (0, earlier + 2),
        "attended": (earlier + 2 + slot, 1),
    }[features]
    return slice(first * width, (first + count) * width)


def features_width(features: Features, topology: BlockTopology) -> int:
    """The number of features that a head reads."""
    taken = columns(features, topology)
    return int(taken.stop - taken.start)
