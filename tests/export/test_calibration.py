import re
from pathlib import Path

import numpy as np
import pytest

from export.calibration import read_calibration
from mosa_deploy.errors import DataError
from mosa_deploy.preprocess import Preprocess

PREPROCESS = Preprocess(size=(4, 6), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))


def pixels(count: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_images_come_as_the_backbone_reads_them(tmp_path: Path) -> None:
    given = pixels(32)
    np.savez_compressed(tmp_path / "calibration.npz", images=given)
    wanted = (given / 255.0 - PREPROCESS.mean) / PREPROCESS.std
    np.testing.assert_allclose(read_calibration(tmp_path, PREPROCESS), wanted.transpose(0, 3, 1, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"images": pixels(31)}, "holds 31 images, int8 needs at least 32"),
        ({"images": pixels(0)}, "holds 0 images, int8 needs at least 32"),
        ({"images": pixels(40, 6, 4)}, "holds images of 6 x 4, the backbone reads 4 x 6"),
        ({"images": pixels(40)[..., :1]}, r"holds uint8 \(40, 4, 6, 1\), not uint8 \(n, H, W, 3\)"),
        ({"images": pixels(40) / 255}, r"holds float64 \(40, 4, 6, 3\), not uint8"),
        ({"pictures": pixels(40)}, r"holds no array `images` \(KeyError\)"),
        ({"images": np.array([{"a": 1}])}, r"holds no array `images` \(ValueError\)"),
    ],
)
def test_what_cannot_calibrate_is_one_line_with_the_way_out(
    tmp_path: Path, arrays: dict[str, np.ndarray], line: str
) -> None:
    np.savez_compressed(tmp_path / "calibration.npz", **arrays)  # type: ignore[arg-type] # not allow_pickle's bool
    path = re.escape(str(tmp_path / "calibration.npz"))
    with pytest.raises(DataError, match=f"^{path} {line}.*: tune the task again, or leave int8 out of --precision$"):
        read_calibration(tmp_path, PREPROCESS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive"])
def test_an_empty_or_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "calibration.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"calibration\.npz holds no array `images` .*leave int8 out of --precision$"):
        read_calibration(tmp_path, PREPROCESS)


def test_a_bundle_without_calibration_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"calibration\.npz: no such file; int8 is calibrated on it: tune the task"):
        read_calibration(tmp_path, PREPROCESS)
