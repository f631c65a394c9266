import pytest
import torch
from torch import nn

from mosa_deploy.adapters.bottleneck import Bottleneck
from mosa_deploy.adapters.split_linear import SplitLinear
from mosa_deploy.bundles.adapter_config import AdapterConfig, Share


def split_bottleneck(config: AdapterConfig, width: int = 6) -> Bottleneck:
    adapter = Bottleneck()
    adapter.down, adapter.up = nn.Linear(width, config.bottleneck), nn.Linear(config.bottleneck, width)
    return adapter.split_(config, torch.Generator().manual_seed(0))


def test_merge_scale_of_the_settings_reaches_the_projection() -> None:
    for given, used in ((0.6, 0.6), (None, 0.25)):
        adapter = split_bottleneck(AdapterConfig(experts=4, share="none", merge_scale=given))
        assert [part.merge_scale for part in adapter.modules() if isinstance(part, SplitLinear)] == [used, used]


@pytest.mark.parametrize(("share", "split"), [("down", {"up"}), ("up", {"down"}), ("none", {"down", "up"})])
def test_share_decides_which_projection_is_split(share: Share, split: set[str]) -> None:
    adapter = split_bottleneck(AdapterConfig(bottleneck=4, share=share))
    assert {name for name in ("down", "up") if isinstance(getattr(adapter, name), SplitLinear)} == split
    assert {name for name, part in adapter.merge_().named_modules() if type(part) is nn.Linear} == {"down", "up"}


def test_owner_maps_of_both_projections_are_drawn_independently() -> None:
    adapter = split_bottleneck(AdapterConfig(bottleneck=32, share="none"), width=32)
    assert isinstance(adapter.down, SplitLinear)
    assert isinstance(adapter.up, SplitLinear)
    for up in (adapter.up.owner, adapter.up.owner.T):
        assert (adapter.down.owner == up).double().mean().item() == pytest.approx(0.25, abs=0.05)
