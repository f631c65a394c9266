import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mosa_deploy.bundles.decode import Decode, encode
from mosa_deploy.bundles.preprocess import Preprocess
from training.duplicates import Mark, find_duplicates, fingerprint

PREPROCESS = Preprocess(size=(64, 64))


def photo(seed: int) -> Image.Image:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)


def mark(name: str, image: Image.Image | bytes, label: int = 0) -> Mark:
    content = image if isinstance(image, bytes) else encode(np.asarray(image))
    return Mark(name, label, fingerprint(content, PREPROCESS.pixels(Decode().image(content))))


def jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=quality)
    return buffer.getvalue()


TRAIN = [mark(f"train{i}", photo(i), i % 2) for i in range(40)]


@pytest.mark.parametrize(
    ("copy", "kind"),
    [
        (lambda image: encode(np.asarray(image)), "the same file"),
        (lambda image: encode(np.asarray(image)) + b"more", "the same pixels"),
        (lambda image: jpeg(image, 40), "nearly the same"),
        (lambda image: image.resize((70, 70)), "nearly the same"),
        (lambda image: ImageEnhance.Brightness(image).enhance(0.8), "nearly the same"),
        (lambda image: image.crop((1, 1, 94, 94)), "nearly the same"),
    ],
    ids=["bytes", "pixels", "re-encoded", "smaller", "darker", "cropped"],
)
def test_a_copy_is_found_with_its_original(copy: Callable[[Image.Image], Image.Image | bytes], kind: str) -> None:
    found = find_duplicates({"train": TRAIN, "test": [mark("new", photo(99)), mark("copy", copy(photo(7)))]})
    assert [(pair.kind, pair.file, pair.first_file) for pair in found.pairs] == [(kind, "copy", "train7")]
    assert found.remarks() == [
        f"1 of 2 test images repeat an image of train (1 {kind}), 1 of them under another label",
    ]


def test_different_photos_are_no_copies() -> None:
    others = [mark(f"other{i}", photo(100 + i), i % 2) for i in range(40)]
    assert find_duplicates({"train": TRAIN, "validation": others}).pairs == []


def test_where_images_of_different_classes_look_alike_only_exact_copies_count() -> None:
    """Parts on a white ground: their hashes cannot tell one class from the other."""

    def part(seed: int) -> Image.Image:
        pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
        pixels[20:40, 20 : 40 + seed % 3] = 10 + seed
        return Image.fromarray(pixels)

    train = [mark(f"part{i}", part(i), i % 2) for i in range(30)]
    test = [mark(f"new{i}", part(40 + i), i % 2) for i in range(10)] + [mark("copy", part(3), 1)]
    assert [pair.file for pair in find_duplicates({"train": train, "test": test}).pairs] == ["copy"]


def test_test_images_are_compared_with_train_and_with_validation() -> None:
    sets = {
        "train": TRAIN[:20],
        "validation": [mark("a", photo(3), 1), mark("b", photo(60))],
        "test": [mark("c", photo(4)), mark("d", photo(60)), mark("e", photo(61))],
    }
    assert find_duplicates(sets).remarks() == [
        "1 of 2 validation images repeat an image of train (1 the same file)",
        "2 of 3 test images repeat an image of train or validation (2 the same file)",
    ]


def test_a_data_set_without_a_test_set_is_compared_too() -> None:
    assert len(find_duplicates({"train": TRAIN, "validation": TRAIN[:2], "test": []}).pairs) == 2
