"""The experts of a training step: drawn once, and held while its batch goes through the model in parts.

Which expert an image gets is a function of the step's draw and of the image's place in the batch. So it does not matter
in how many parts a batch is computed, by how many processes, or whether a part is computed twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mosa_deploy.adapters.attach import split_layers


@contextmanager
def held_draws(model: nn.Module) -> Iterator[None]:
    """Draw the experts of every split layer once, for all forward passes in this block.

    Before each of them, `place` says which images of the batch it sees.
    """
    layers = [layer for layer in split_layers(model) if not layer.dense]
    for layer in layers:
        layer.drawn, layer.held = layer.draw(), True
    try:
        yield
    finally:
        for layer in layers:
            layer.held = False


def place(model: nn.Module, places: Tensor, total: int) -> None:
    """Say where in a batch of `total` images those of the next forward pass stand: `places` (n,), in rising order."""
    layers = split_layers(model)
    if layers:
        sizes = group_sizes(places, total, layers[0].groups)
        for layer in layers:
            layer.sizes = sizes


def group_sizes(places: Tensor, total: int, groups: int) -> list[int]:
    """How many of these places are in each of the groups into which `total` places are cut.

    The groups follow each other, and their sizes differ by at most one.
    """
    ends = torch.tensor([len(group) for group in torch.arange(total).tensor_split(groups)]).cumsum(0)
    return [int(size) for size in torch.bucketize(places, ends, right=True).bincount(minlength=groups)]
