import pytest

from mosa_deploy.bundles.adapter_config import AdapterConfig, Share
from mosa_deploy.errors import ConfigError


def test_all_faults_of_an_adapter_config_are_told_at_once() -> None:
    share: Share = "dwon"  # type: ignore[assignment]  # a wrong value on purpose
    with pytest.raises(ConfigError) as caught:
        AdapterConfig(bottleneck=0, experts=257, share=share, dropout=1.0)
    expected = (
        "--bottleneck 0: at least 1; --experts 257: 1 to 256; unknown --share 'dwon'; did you mean down or none?;"
        " dropout 1.0: at least 0 and below 1"
    )
    assert str(caught.value) == expected


def test_the_widest_adapter_config_is_accepted() -> None:
    config = AdapterConfig(bottleneck=1, experts=256, share="none", dropout=0.0)
    assert config == AdapterConfig(1, 256, "none", 0.1, 0.0)
