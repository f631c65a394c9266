"""A tuned ViT, how its tensors are taken apart, and what becomes of a file of them."""

from functools import cache
from pathlib import Path

import pytest
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from export.options import ConvertConfig
from export.sources import of_timm
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.errors import BackboneError
from tests.support.peft_models import NAME

State = dict[str, Tensor]


def split(state: State) -> tuple[State, State]:
    """(backbone, head), the latter by `weight` and `bias`."""
    head = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    return {name: value for name, value in state.items() if not name.startswith("head.")}, head


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


@cache
def untuned() -> VisionTransformer:
    """The backbone before tuning."""
    model = load_backbone(NAME, Weights("random"))
    assert isinstance(model, VisionTransformer)
    return model


def brought(file: Path) -> State:
    """The tensors of the task that a checkpoint becomes."""
    return of_timm(ConvertConfig(file, "timm", "parts", NAME, random_weights=True), untuned()).tensors


def refusal(file: Path) -> str:
    """The line with which a file is refused as a task."""
    with pytest.raises(BackboneError) as caught:
        brought(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)
