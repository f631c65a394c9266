"""Tasks that adapt the last blocks alone share one pass of what comes before: the shared graph is cut in two.

    images -> prefix -> tokens (B, N, C) -> suffix, once with the slot of each task -> features (B, S, C)

With L blocks, of which S tasks leave the first b as they are, an image costs b + S (L - b) blocks in place of S L. The
tokens of one batch are all that is held between the parts.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array, Preprocess
from mosa_deploy.bundles.record import Record
from mosa_deploy.runtimes.names import CANARY_TOLERANCE
from mosa_deploy.runtimes.runner import Runner
from serving.lanes import SharedLane
from serving.opening import Lanes

log = logging.getLogger("mosa_deploy.serving")

TRIED = 2
"""Images of noise on which a lane that was cut is compared with the whole one."""


class CutLane:
    """A shared lane that was cut: an image runs once through the prefix, and through the suffix with each slot."""

    def __init__(self, lane: SharedLane, prefix: Runner, suffix: Runner, slots: tuple[int, ...]) -> None:
        self.lane, self.prefix, self.suffix, self.slots = lane, prefix, suffix, slots

    def features(self, images: Array) -> Array:
        """Images (B, 3, H, W) -> features (B, S, C). In the prefix every slot holds what the empty one does: zeros."""
        tokens = self.prefix.run(images, of_all(self.lane.empty, images))
        return np.stack([self.suffix.run(tokens, of_all(slot, images)) for slot in self.slots], axis=1)


def of_all(slot: int, images: Array) -> NDArray[np.int64]:
    """A slot for each image."""
    return np.full(len(images), slot, dtype=np.int64)


def untouched(record: Record) -> int:
    """How many of the first blocks a task leaves as they are."""
    depth = record.backbone.depth
    return depth if record.adapter is None else record.adapter.first(depth)


def where_to_cut(firsts: Sequence[int]) -> int:
    """The block before which cutting saves most, for passes that leave that many of the first blocks as they are.

    S passes that share b blocks save (S - 1) b of them. 0 if nothing can be saved.
    """
    saved = {block: (sum(first >= block for first in firsts) - 1) * block for block in firsts}
    block = max(saved, key=saved.__getitem__)
    return block if saved[block] else 0


def cut_lane(
    lanes: Lanes, lane: SharedLane, block: int, slots: Sequence[int], preprocess: Preprocess
) -> CutLane | None:
    """The lane of tasks in these slots, cut before a block; None if that cannot be done, and the log says why."""
    try:
        cut = CutLane(lane, *lanes.cut(lane, block), tuple(slots))
        difference = _difference(cut, preprocess)
    except Exception as fault:  # Runtimes' exceptions share no base class of their own, and nobody needs the cut.
        log.warning("every task runs the whole graph: %s", str(fault).splitlines()[0])
        return None
    if not difference <= CANARY_TOLERANCE[lane.plan.precision]:
        log.warning("every task runs the whole graph: cut in two, its features differ by %.1e", difference)
        return None
    log.info("the blocks before %d run once for %d tasks", block, len(slots))
    return cut


def _difference(cut: CutLane, preprocess: Preprocess) -> float:
    """The largest difference to the features of the whole lane, as a share of the largest of them."""
    images = np.random.default_rng(0).standard_normal((TRIED, 3, *preprocess.size), dtype=np.float32)
    whole = np.stack([cut.lane.infer(images, of_all(slot, images)) for slot in cut.slots], axis=1)
    return float(np.abs(cut.features(images) - whole).max() / np.abs(whole).max())
