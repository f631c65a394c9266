from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.outliers import CHANNEL, Row, copied_run, row_table
from mosa_deploy.adapters.restore import restore
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import Samples, write_samples
from tests.support.runs import BACKBONE, make_run


def test_a_copy_with_an_outlier_is_the_same_task_in_fp32(tmp_path: Path) -> None:
    weights, images = tmp_path / "weights.safetensors", np.zeros((2, 160, 160, 3), dtype=np.uint8)
    save_file(load_backbone(BACKBONE, Weights("random")).state_dict(), weights)
    make_run(tmp_path / "run", Weights("file", weights))
    write_samples(tmp_path / "run", Samples.unlabelled(images))
    copy, scaled, _ = copied_run(tmp_path / "run", weights, 200.0, tmp_path)
    before, after = (load_file(path)["blocks.3.norm2.weight"] for path in (weights, scaled))
    assert (after / before)[CHANNEL] == pytest.approx(200, rel=1e-6)
    noise = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = (
            restore(Bundle.load(run), Weights("file", path))(noise)
            for run, path in ((tmp_path / "run", weights), (copy, scaled))
        )
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_a_file_that_was_not_written_has_no_figures() -> None:
    row = Row("land", "mosa", 200, "folded, int8", "not written", 0, None, None, None)
    assert "| land | mosa | 200 | folded, int8 | not written |  |  |  |  |" in row_table([row])
