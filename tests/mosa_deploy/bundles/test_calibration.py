import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosa_deploy.bundles.calibration import Samples, read_samples, write_samples
from mosa_deploy.bundles.preprocess import Pixels
from mosa_deploy.errors import DataError


def save(folder: Path, **arrays: Any) -> None:
    np.savez_compressed(folder / "calibration.npz", **arrays)


def images(n: int = 3, side: int = 4) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_the_images_of_a_run_are_read_as_they_are(tmp_path: Path) -> None:
    save(tmp_path, images=images())
    found = read_samples(tmp_path, (4, 4))
    assert found is not None
    np.testing.assert_array_equal(found.images, images())
    assert len(found.validation) == len(found.labels) == 0


def test_stages_are_compared_on_validation_images(tmp_path: Path) -> None:
    held_out = images(5)[::-1]
    save(tmp_path, images=images(), validation=held_out, labels=np.arange(5))
    found = read_samples(tmp_path, (4, 4))
    assert found is not None
    np.testing.assert_array_equal(found.compared(2), held_out[:2])


def test_without_labels_stages_are_compared_on_the_calibration_images(tmp_path: Path) -> None:
    save(tmp_path, images=images())
    found = read_samples(tmp_path, (4, 4))
    assert found is not None
    np.testing.assert_array_equal(found.compared(2), images()[:2])


@pytest.mark.parametrize(
    "written",
    [Samples(images(), images(5)[::-1], np.array([4, 0, 1, 1, 2])), Samples.unlabelled(images())],
    ids=["labelled", "unlabelled"],
)
def test_images_come_back_as_they_were_written(tmp_path: Path, written: Samples) -> None:
    write_samples(tmp_path, written)
    found = read_samples(tmp_path, (4, 4))
    assert found is not None
    for name, array in vars(written).items():
        np.testing.assert_array_equal(getattr(found, name), array)


def test_a_run_without_any_has_none(tmp_path: Path) -> None:
    assert read_samples(tmp_path, (4, 4)) is None


def truncated(path: Path) -> None:
    save(path.parent, images=images())
    path.write_bytes(path.read_bytes()[:-30])


def pickled(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", buffer.getvalue())


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda path: path.touch(), "calibration.npz cannot be read (EOFError)"),
        (lambda path: path.write_bytes(b"no archive"), "calibration.npz cannot be read (ValueError)"),
        (truncated, "calibration.npz cannot be read (BadZipFile)"),
        (pickled, "calibration.npz cannot be read (ValueError)"),
        (lambda path: save(path.parent, other=images()), "calibration.npz cannot be read (KeyError)"),
        (lambda path: save(path.parent, images=images(0)), "calibration.npz holds no images"),
        (
            lambda path: save(path.parent, images=images(side=5)),
            "images of (5, 5, 3) uint8, the task reads (4, 4, 3)",
        ),
        (lambda path: save(path.parent, images=images().astype(np.float32)), "holds images of (4, 4, 3) float32"),
        (
            lambda path: save(path.parent, images=images(), validation=images(side=5), labels=np.arange(3)),
            "images of (5, 5, 3) uint8, the task reads (4, 4, 3)",
        ),
        (
            lambda path: save(path.parent, images=images(), validation=images(), labels=np.arange(2)),
            "holds 3 validation images and labels of (2,)",
        ),
        (
            lambda path: save(path.parent, images=images(), validation=images(), labels=np.ones(3)),
            "holds 3 validation images and labels of (3,)",
        ),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_with_the_way_out(
    tmp_path: Path, write: Callable[[Path], None], text: str
) -> None:
    write(tmp_path / "calibration.npz")
    with pytest.raises(DataError) as caught:
        read_samples(tmp_path, (4, 4))
    assert text in str(caught.value)
    assert str(caught.value).endswith("remove it, or copy the run again with its calibration.npz")
    assert "\n" not in str(caught.value)
