from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.facts import Fact
from export.sample_images import SampleImages, check_labels, read_images, sample_images, smooth_noise
from mosa_deploy.bundles.decode import Decode
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import ConfigError, DataError

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
    read = read_images(sample_images(tmp_path), PREPROCESS)
    drawn = read.pixels
    assert read.first == [(tmp_path / f"{i:03}.png").read_bytes() for i in range(8)]
    assert drawn.shape == (256, 8, 12, 3)
    numbers = drawn[:, 0, 0, 0].astype(int) + 256 * drawn[:, 0, 0, 1].astype(int)
    assert len(set(numbers)) == 256
    assert numbers.max() > 270


def test_an_unreadable_image_and_a_folder_of_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^--images .*none: no such folder; give a folder of images of the task$"):
        sample_images(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"holds no images \(left out as no images: 1 \.txt\): give a"):
        sample_images(tmp_path)
    (tmp_path / "half.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"half\.png: not a readable image .*; or remove it from --images$"):
        read_images(sample_images(tmp_path), PREPROCESS)
    (tmp_path / "half.png").unlink()
    with pytest.raises(
        DataError, match=r"half\.png: No such file or directory; make it readable, or remove it from --images$"
    ):
        read_images(SampleImages(tmp_path, (tmp_path / "half.png",)), PREPROCESS)


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("cat/a.png", "cat"),
        ("cat/2021/a.png", "cat"),
        ("Train/cat/a.png", "cat"),
        ("val/dog/a.png", "dog"),
        ("a.png", None),
        ("test/a.png", None),
    ],
)
def test_the_class_of_an_image_is_its_folder_below_that_of_a_set(path: str, label: str | None) -> None:
    assert SampleImages(Path(), (Path(path),)).label(Path(path)) == label


def names(*classes: str, known: bool = True) -> Fact[tuple[str, ...]]:
    return Fact(classes, "config.json", known)


def test_folders_that_are_named_after_no_class_are_refused() -> None:
    images = SampleImages(Path("pictures"), (Path("pictures/cat/a.png"), Path("pictures/zebra/b.png")))
    with pytest.raises(ConfigError, match=r"^--images pictures has folders zebra, the task's classes are cat, dog: "):
        check_labels(images, names("cat", "dog"), None)
    check_labels(images, names("zebra", "dog", "cat"), None)


def test_an_accuracy_that_cannot_be_computed_is_said_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    images = SampleImages(Path("pictures"), (Path("pictures/cat/a.png"),))
    check_labels(images, names("class0", "class1", known=False), None)
    assert capsys.readouterr().out == ("no accuracy on --images pictures: the classes have no names, give --classes\n")
    with pytest.raises(ConfigError, match=r"^--min-accuracy: no accuracy on --images pictures: the classes have no"):
        check_labels(images, names("class0", "class1", known=False), 0.5)
    flat = SampleImages(Path("pictures"), (Path("pictures/a.png"),))
    with pytest.raises(ConfigError, match=r"^--min-accuracy: no accuracy on --images pictures: its images lie in no"):
        check_labels(flat, names("cat", "dog"), 0.5)
