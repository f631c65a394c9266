from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from mosa_deploy.errors import ConfigError
from training.config import TuneConfig
from training.plan import Plan, precision_of
from training.ranks import Ranks
from training.run import jpeg_of
from training.run_settings import describe
from training.tasks import find
from training.tune import tune

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("began", ["fp32", "bf16"])
def test_a_resumed_run_goes_on_in_its_precision_unless_another_is_named(tmp_path: Path, began: str) -> None:
    config = TuneConfig(task="digits", out=tmp_path)
    (tmp_path / "config.json").write_text(describe(config, find("digits").recipe, began))
    assert precision_of(config, "digits") == "auto"
    resumed = replace(config, resume=True)
    assert precision_of(resumed, "digits") == began
    assert precision_of(replace(resumed, precision="fp32"), "digits") == "fp32"


@pytest.mark.parametrize("began", ["full", "scaled"])
def test_a_resumed_run_decodes_jpegs_as_it_began_unless_the_other_way_is_named(
    tmp_path: Path, began: Literal["full", "scaled"]
) -> None:
    config = TuneConfig(task="digits", out=tmp_path, jpeg=began)
    (tmp_path / "config.json").write_text(describe(config, find("digits").recipe, "fp32"))
    resumed = replace(config, jpeg="auto", resume=True)
    assert jpeg_of(resumed, tmp_path) == began
    assert jpeg_of(replace(resumed, jpeg="full"), tmp_path) == "full"


def test_a_new_run_decodes_them_scaled_and_one_that_an_earlier_release_began_in_full(tmp_path: Path) -> None:
    config = TuneConfig(task="digits", out=tmp_path, resume=True)
    assert jpeg_of(replace(config, resume=False), FIXTURES / "v5" / "run") == "scaled"
    assert jpeg_of(config, FIXTURES / "v5" / "run") == "full"
    assert Plan.of(TuneConfig(task="digits"), "linear", Ranks()).preprocess.decode.jpeg == "scaled"


def test_a_run_that_is_not_there_leaves_the_choice(tmp_path: Path) -> None:
    config = TuneConfig(task="digits", out=tmp_path / "none", resume=True)
    assert precision_of(config, "digits") == "auto"


def test_more_blocks_than_there_are_is_said_before_an_image_is_read(tmp_path: Path) -> None:
    config = TuneConfig("digits", adapt_blocks=7, out=tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match=r"^--adapt-blocks 7: the backbone has 6 blocks$"):
        tune(config)
    assert not (tmp_path / "run").exists()
