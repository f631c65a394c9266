from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.sample_images import read_images, sample_images, smooth_noise
from mosa_deploy.bundles.decode import Decode
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import DataError

PREPROCESS = Preprocess(size=(8, 12), resize="squash", interpolation="nearest")


def test_smooth_noise_is_seeded_smooth_and_of_the_size_that_is_read() -> None:
    images = [np.asarray(Decode().image(content)).astype(int) for content in smooth_noise((40, 60))]
    assert [image.shape for image in images] == [(40, 60, 3)] * 8
    assert smooth_noise((40, 60)) == smooth_noise((40, 60))
    assert len({image.tobytes() for image in images}) == 8
    steps = max(np.abs(np.diff(image, axis=axis)).mean() for image in images for axis in (0, 1))
    assert 0 < steps < 15
    assert min(image.std() for image in images) > 30


def test_up_to_256_of_more_images_are_drawn_over_all_of_them(tmp_path: Path) -> None:
    for i in range(300):
        Image.new("RGB", (3, 3), (i % 256, i // 256, 0)).save(tmp_path / f"{i:03}.png")
    first, drawn = read_images(sample_images(tmp_path), PREPROCESS)
    assert first == [(tmp_path / f"{i:03}.png").read_bytes() for i in range(8)]
    assert drawn.shape == (256, 8, 12, 3)
    numbers = drawn[:, 0, 0, 0].astype(int) + 256 * drawn[:, 0, 0, 1].astype(int)
    assert len(set(numbers)) == 256
    assert numbers.max() > 270


def test_an_unreadable_image_and_a_folder_of_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^--images .*none: no such folder; give a folder of images of the task$"):
        sample_images(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"holds no images: give a folder of images of the task$"):
        sample_images(tmp_path)
    (tmp_path / "half.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"half\.png: not a readable image .*; or remove it from --images$"):
        read_images(sample_images(tmp_path), PREPROCESS)
    (tmp_path / "half.png").unlink()
    with pytest.raises(
        DataError, match=r"half\.png: No such file or directory; make it readable, or remove it from --images$"
    ):
        read_images([tmp_path / "half.png"], PREPROCESS)
