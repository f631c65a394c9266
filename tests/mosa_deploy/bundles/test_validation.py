"""Validation images travel with a bundle, in the size that its task reads."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.calibration import Samples, write_samples
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.gate import LabelledImage, pack_images
from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.bundles.validation import BUDGET, PREFIX, encode_validation
from mosa_deploy.errors import BundleError, DataError
from tests.support.runs import small_bundle

CLASSES = small_bundle().record.classes
LIMIT = 10 << 20


def noise(count: int, side: int = 8) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def samples(count: int, side: int = 8) -> Samples:
    return Samples(noise(1, side), noise(count, side), np.arange(count) % 2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the classes `río` and `sea` that has kept three validation images of 8 x 8 pixels."""
    small_bundle().save(tmp_path)
    write_samples(tmp_path, samples(3))
    return tmp_path


@pytest.mark.parametrize("how", [{}, {"crop_pct": 0.7}, {"resize": "squash"}], ids=str)
def test_decoding_and_resizing_them_again_changes_nothing(how: dict[str, object]) -> None:
    preprocess = Preprocess.model_validate({"size": (8, 8), **how})
    found = encode_validation(samples(3), CLASSES)
    np.testing.assert_array_equal([preprocess.unresized.read(image.content) for image in found], noise(3))


def test_they_lie_in_the_archive_by_class(run: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(Archive.of(run).pack())) as archive:
        images = [name for name in archive.namelist() if name.startswith("validation/")]
    assert images == ["validation/r%C3%ADo/000.png", "validation/sea/001.png", "validation/r%C3%ADo/002.png"]


def test_an_archive_brings_them_back_and_they_do_not_change_which_bundle_it_is(run: Path) -> None:
    packed = Archive.of(run)
    assert [image.label for image in packed.validation] == ["río", "sea", "río"]
    assert Archive.unpack(packed.pack(), LIMIT) == packed
    assert packed.key == replace(packed, validation=()).key


def test_a_run_that_kept_none_has_an_archive_as_before(run: Path) -> None:
    write_samples(run, Samples.unlabelled(noise(3)))
    assert Archive.of(run).pack() == replace(Archive.of(run), validation=()).pack()


def test_where_lossless_images_are_too_large_all_of_them_are_jpegs() -> None:
    found = encode_validation(samples(48, side=160), CLASSES)
    assert [image.name for image in found] == [f"{i:03}.jpg" for i in range(48)]
    assert sum(len(image.content) for image in found) < BUDGET < sum(len(encode(image)) for image in noise(48, 160))


def test_of_images_that_are_too_large_as_jpegs_the_first_ones_are_taken() -> None:
    found = encode_validation(samples(24, side=512), CLASSES)
    assert 5 < len(found) < 24
    size = sum(len(image.content) for image in found)
    assert size <= BUDGET < size + 2 * len(found[-1].content)


def test_a_label_of_no_class_is_told(run: Path) -> None:
    write_samples(run, Samples(noise(1), noise(1), np.array([2])))
    with pytest.raises(DataError, match=r"calibration\.npz has label 2, the task has 2 classes: copy the run again"):
        Archive.of(run)


GOOD = encode(noise(1)[0])


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([LabelledImage("0.png", "seas", GOOD)], "validation/: unknown class 'seas'; did you mean sea?"),
        ([LabelledImage("0.png", "sea", b"text")], "validation/sea/0.png is no image (UnidentifiedImageError)"),
        ([LabelledImage("0.png", "sea", encode(noise(1, 9)[0]))], "has 9 x 9 pixels, the task reads 8 x 8"),
        ([LabelledImage(f"{i}.png", "sea", GOOD) for i in range(257)], "257 images in validation/: a bundle carries"),
    ],
    ids=["class", "text", "size", "many"],
)
def test_images_that_do_not_fit_the_bundle_are_refused(run: Path, images: list[LabelledImage], said: str) -> None:
    sent = replace(Archive.of(run), validation=tuple(images)).pack()
    with pytest.raises(BundleError) as caught:
        Archive.unpack(sent, LIMIT).bundle()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_lies_beside_the_classes_is_refused_with_the_names_that_are_allowed(run: Path) -> None:
    packed = Archive.of(run)
    buffer = io.BytesIO(packed.pack())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("validation/sea/deeper/0.png", GOOD)
    with pytest.raises(BundleError, match=r"images in gate/<class>/ and validation/<class>/, and nothing else, not"):
        Archive.unpack(buffer.getvalue(), LIMIT)


def test_those_of_an_exported_task_come_from_its_zip(run: Path) -> None:
    image = LabelledImage("0.png", "sea", GOOD)
    (run / "validation.zip").write_bytes(pack_images([image], PREFIX))
    assert Archive.of(run).validation == (image,)
    (run / "validation.zip").write_bytes(b"PK")
    with pytest.raises(BundleError, match=r"validation\.zip is damaged .*: remove it, or export the task again"):
        Archive.of(run)
