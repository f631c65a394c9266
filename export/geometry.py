"""For which patches and images a model was tuned, as its tensors show them.

timm resamples patches and position embeddings to those of another model without a word. The result is not the model
that was tuned.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from export.facts import Fact
from export.options import ConvertConfig
from mosa_deploy.backbones.checkpoints import check_patches, find_source
from mosa_deploy.backbones.foldable import Vit
from mosa_deploy.backbones.function import without_init
from mosa_deploy.backbones.load import check_name
from mosa_deploy.backbones.names import as_timm
from mosa_deploy.backbones.parts import ANCHOR, Found
from mosa_deploy.errors import BackboneError


@dataclass(frozen=True)
class Geometry:
    """The side of a model's images, in pixels."""

    side: int | None
    """None if the position embeddings are of no square."""
    where: Path


def trained_at(geometry: Geometry | None) -> Fact[int] | None:
    """The side of the images for which a model has position embeddings, where its tensors show it."""
    return None if geometry is None or geometry.side is None else Fact(geometry.side, str(geometry.where))


def find_geometry(config: ConvertConfig) -> Geometry | None:
    """That of the model that was tuned; None if no file holds one.

    Raises:
        BackboneError: its patches are not those of `--backbone`.
    """
    for path in (config.path if config.source == "timm" else None, config.backbone_weights):
        # A file that cannot be read is told where its tensors are taken.
        with contextlib.suppress(BackboneError):
            found = None if path is None else find_source(path, "")
            if path is not None and found is not None and ANCHOR in found.state:
                geometry = Geometry(_side(found), path)
                break
    else:
        return None
    check_name(config.backbone)
    with torch.device("meta"):
        outline = timm.create_model(as_timm(config.backbone), num_classes=0, **without_init(config.backbone))
    if not isinstance(outline, Vit):
        return None  # It is refused where it is loaded.
    check_patches(outline, f"--backbone {config.backbone}", found, str(geometry.where))
    return geometry


def _side(found: Found) -> int | None:
    positions, patches = found.state.get("pos_embed"), found.state[ANCHOR].shape[-1]
    if positions is None or positions.ndim != 3:
        return None
    tokens = [found.state[name].shape[1] for name in ("cls_token", "dist_token", "reg_token") if name in found.state]
    grid = math.isqrt(positions.shape[1])
    prefix = positions.shape[1] - grid**2
    return grid * patches if prefix in (0, sum(tokens)) else None
