"""How the images of a set enter the model: as pixels, or as what its frozen first blocks make of them.

With adapters in the last blocks alone (`--adapt-blocks`) the blocks before them say the same of an image in every pass
and epoch. Their tokens are computed once and kept in memory, if they fit, and if images are not augmented.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mosa_deploy.adapters.attach import adapters
from mosa_deploy.backbones.foldable import Transformer, image_size
from mosa_deploy.bundles.preprocess import Preprocess
from training.data import Images, ImageSource, normalise

CACHE_BYTES = 2 << 30
"""The largest size of the tokens of all sets together; beyond it they are computed anew in every step."""

BATCH = 256

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """Two functions whose composition gives the logits of a batch of inputs.

    `prepare` has neither gradients nor randomness, so one result serves all passes; `forward` is the rest.
    """

    prepare: Step
    forward: Step

    @classmethod
    def whole(cls, model: nn.Module, preprocess: Preprocess) -> "Entry":
        """Pixels are normalised, and the model does the rest."""
        return cls(partial(normalise, preprocess=preprocess), model)

    @classmethod
    def before_adapters(cls, model: Transformer, preprocess: Preprocess) -> "Entry":
        """`prepare` holds all that comes before the first block with an adapter."""
        steps = list(steps_of(model))
        first = next(i for i, step in enumerate(steps) if isinstance(step, nn.Module) and adapters(step))

        @torch.no_grad()
        def prefix(pixels: Tensor) -> Tensor:
            return in_turn(steps[:first], normalise(pixels, preprocess))

        return cls(prefix, partial(in_turn, steps[first:]))

    @torch.no_grad()
    def prepared(self, source: ImageSource, device: str) -> Images:
        """What `prepare` makes of a set's images, in the place of their pixels."""
        images = source.settled()
        parts = [self.prepare(pixels.to(device)).float().cpu() for pixels in images.split(BATCH)]
        return Images(torch.cat(parts), images.labels, images.examples)


def steps_of(model: Transformer) -> Iterator[Step]:
    """What a model does in turn, its blocks one by one: images (B, 3, H, W) -> logits (B, K)."""
    if isinstance(model, VisionTransformer):
        yield from (model.patch_embed, model._pos_embed, model.patch_drop, model.norm_pre)
        yield from model.blocks
    elif isinstance(model, Eva):
        turns = turns_of(model)
        yield from (model.patch_embed, lambda patches: model._pos_embed(patches)[0], model.norm_pre)
        yield from (TurningBlock(block, turns) for block in model.blocks)
    else:
        yield model.patch_embed
        for stage in model.layers:
            yield stage.get_submodule("downsample")
            yield from stage.get_submodule("blocks").children()
    yield from (model.norm, model.forward_head)


class TurningBlock(nn.Module):
    """A block of an Eva, with the turns by which its attention tells patches apart."""

    def __init__(self, block: nn.Module, turns: Tensor | None) -> None:
        super().__init__()
        self.block, self.turns = block, turns

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        out: Tensor = self.block(x, rope=self.turns)
        return out


@torch.no_grad()
def turns_of(model: Eva) -> Tensor | None:
    """Sines and cosines of the positions of an Eva's patches (N, 2 C / heads): the same for all images of its size."""
    pixels = torch.zeros(1, 3, *image_size(model), device=model.patch_embed.proj.weight.device)
    turns: Tensor | None = model._pos_embed(model.patch_embed(pixels))[1]
    return turns


def in_turn(steps: list[Step], x: Tensor) -> Tensor:
    """Apply the steps one after the other."""
    for step in steps:
        x = step(x)
    return x


def cut(
    model: Transformer,
    train: ImageSource,
    validation: ImageSource,
    preprocess: Preprocess,
    device: str,
    autocast: torch.autocast,
    limit: int = CACHE_BYTES,
    changing: bool = False,
) -> tuple[Entry, ImageSource, ImageSource]:
    """Cut a model before its first adapter, and say whether its inputs are cached; returns the sets to use from now on.

    Training runs under `autocast`, and validation does not. Nothing is cached of images that are changing.
    """
    model.eval()
    entry = Entry.before_adapters(model, preprocess)
    if changing:
        print("the tokens before the first adapter are computed anew in every step, because the images are augmented")
        return entry, train, validation
    tokens = entry.prepare(torch.zeros(1, *preprocess.size, 3, dtype=torch.uint8, device=device))
    needed = 4 * tokens.numel() * (len(train) + len(validation))
    size = f"{needed / 2**20:,.1f} MiB"
    if needed > limit:
        print(f"the tokens before the first adapter would take {size}: they are computed anew in every step")
        return entry, train, validation
    print(f"the tokens before the first adapter are computed once and kept in memory: {size}")
    with autocast:
        train = entry.prepared(train, device)
    return Entry(_as_it_is, entry.forward), train, entry.prepared(validation, device)


def _as_it_is(x: Tensor) -> Tensor:
    return x
