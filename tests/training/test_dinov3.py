"""A DINOv3 is tuned by the methods that touch what is its own: positions, class token, biases of q and v."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.model_args import ModelArgs
from tests.support import eva
from tests.support.images import write_jpegs
from training.config import TuneConfig
from training.tune import tune


def tuned(folder: Path, **options: Any) -> Bundle:
    """A run of one epoch on three grey levels."""
    images = write_jpegs(folder / "images", dict.fromkeys(("dark", "grey", "light"), 20), size=32)
    given: dict[str, Any] = {"task": "folder", "data_dir": images, "out": folder / "run", "device": "cpu", **options}
    tune(TuneConfig(backbone=eva.BIASED, random_weights=True, image_size=32, epochs=1, **given))
    return Bundle.load(folder / "run")


def test_the_first_blocks_are_computed_once_and_the_record_says_what_is_pooled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tuned(tmp_path, method="lora", adapt_blocks=1, lr=5e-2)
    assert "the tokens before the first adapter are computed once and kept in memory" in capsys.readouterr().out
    assert bundle.record.backbone.model_args == ModelArgs(global_pool="token", fc_norm=False)
    assert restore(bundle)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert all("blocks.1." in name for name in bundle.tensors if "adapter" in name)


def test_bitfit_tunes_the_biases_of_q_and_v(tmp_path: Path) -> None:
    bundle, before = tuned(tmp_path, method="bitfit", lr=5e-2), load_backbone(eva.BIASED, Weights("random"))
    for part in ("q_bias", "v_bias"):
        name = f"blocks.1.attn.{part}"
        assert not torch.equal(torch.tensor(bundle.tensors[name]), before.get_parameter(name))
