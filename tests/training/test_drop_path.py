"""Drop path on models that were made without it, or with another one."""

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from mosa_deploy.backbones.foldable import blocks_of
from mosa_deploy.backbones.load import Weights, load_backbone
from tests.support import swin
from tests.support.models import Toy
from training.drop_path import set_drop_path


def rates(model: nn.Module) -> list[float]:
    return [part.drop_prob for part in model.modules() if isinstance(part, DropPath)]


def test_the_rates_are_those_with_which_timm_makes_the_model(toy: Toy) -> None:
    model = toy(depth=4)
    assert not rates(model)
    set_drop_path(model, 0.3)
    assert rates(model) == rates(toy(depth=4, drop_path_rate=0.3)) == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    set_drop_path(model, 0.0)
    assert not rates(model)


def test_what_timm_gives_a_swin_is_replaced() -> None:
    model = load_backbone(swin.NAME, Weights("random"), 3)
    assert rates(model)
    set_drop_path(model, 0.0)
    assert not rates(model)
    set_drop_path(model, 0.6)
    assert rates(model) == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6])
    assert len(blocks_of(model)) == 4


def test_it_changes_training_alone(toy: Toy) -> None:
    model, images = toy(), torch.randn(8, 3, 16, 16)
    before = model(images)
    set_drop_path(model, 0.5)
    assert torch.equal(model(images), before)
    dropped = model.train()(images)
    assert not torch.equal(dropped, before)
    assert not torch.equal(dropped, model(images))
