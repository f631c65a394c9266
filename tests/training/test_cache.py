"""The files of the cache, without worker processes."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mosa_deploy.bundles.decode import PILLOW_PIXELS, Decode
from mosa_deploy.errors import ConfigError, DataError, WriteError
from tests.support.images import PREPROCESS, write_jpegs
from training.cache import CachedSet, finding, reserve
from training.inspection import Inspection, inspect
from training.tasks.base import Example
from training.workers import decode

HOW = Inspection(PREPROCESS, PILLOW_PIXELS, compared=True)


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    """Four images, one of 16-bit grey, one with two frames, and one that is none."""
    folder = write_jpegs(tmp_path / "images", {"oak": 2})
    grey = np.full((8, 8), 3000, dtype=np.uint16)
    Image.fromarray(grey).save(folder / "grey.png")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "frames.gif", save_all=True, append_images=frames[1:])
    (folder / "none.png").write_bytes(b"nothing")
    return [Example(path.name, path.read_bytes, 0) for path in sorted(folder.rglob("*.*"))]


def filled(root: Path, examples: list[Example]) -> CachedSet:
    cached = CachedSet.of(root, examples, HOW)
    reserve(root, [cached], most=1)
    decode(cached, HOW, [*enumerate(examples)], again=False)
    return cached


def test_the_cache_gives_back_what_is_known_of_each_image(examples: list[Example], tmp_path: Path) -> None:
    cached = filled(tmp_path / "cache", examples)
    assert len(examples) == 5
    for example, record, pixels in zip(examples, cached.records(), cached.pixels(), strict=True):
        found, decoded = inspect(example, HOW)
        assert finding(record, example.name) == found
        np.testing.assert_array_equal(pixels, 0 if decoded is None else decoded)


def test_another_way_to_decode_has_another_place(examples: list[Example], tmp_path: Path) -> None:
    scaled = PREPROCESS.model_copy(update={"decode": Decode(jpeg="scaled")})
    folders = {CachedSet.of(tmp_path, examples, replace(HOW, preprocess=each)).folder for each in (PREPROCESS, scaled)}
    assert len(folders) == 2


def test_an_image_that_is_there_is_not_decoded_again(examples: list[Example], tmp_path: Path) -> None:
    cached = filled(tmp_path / "cache", examples)
    before = cached.records().copy()
    others = [(row, examples[0]) for row in range(1, 5)]
    decode(cached, HOW, others, again=False)
    changed = [row for row in range(5) if cached.records()[row] != before[row]]
    assert [examples[row].name for row in changed] == ["none.png"]


@pytest.mark.parametrize(
    "change",
    [
        lambda examples, how: (examples[:4], how),
        lambda examples, how: (examples[::-1], how),
        lambda examples, how: ([examples[0]._replace(name="elm.jpg"), *examples[1:]], how),
        lambda examples, how: (examples, replace(how, max_pixels=10)),
        lambda examples, how: (examples, replace(how, preprocess=PREPROCESS.model_copy(update={"size": (8, 8)}))),
    ],
    ids=["fewer", "order", "name", "limit", "size"],
)
def test_other_images_or_another_size_are_another_folder(
    examples: list[Example],
    tmp_path: Path,
    change: Callable[[list[Example], Inspection], tuple[list[Example], Inspection]],
) -> None:
    assert CachedSet.of(tmp_path, *change(examples, HOW)).folder != CachedSet.of(tmp_path, examples, HOW).folder


def test_a_file_that_changes_is_another_set(examples: list[Example], tmp_path: Path) -> None:
    before = CachedSet.of(tmp_path, examples, HOW).folder
    path = tmp_path / "images" / "grey.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert CachedSet.of(tmp_path, examples, HOW).folder != before


def test_what_is_done_to_pixels_later_is_no_other_set(examples: list[Example], tmp_path: Path) -> None:
    other = replace(HOW, preprocess=PREPROCESS.model_copy(update={"mean": (0.1, 0.1, 0.1)}))
    assert CachedSet.of(tmp_path, examples, other) == CachedSet.of(tmp_path, examples, HOW)


def test_a_cache_above_its_bound_is_refused_by_the_size_that_it_needs(examples: list[Example], tmp_path: Path) -> None:
    old = filled(tmp_path, examples)
    large = CachedSet(tmp_path / "new", 100_000, (224, 224))
    with pytest.raises(ConfigError) as caught:
        reserve(tmp_path, [large], most=15)
    assert str(caught.value) == (
        f"--cache-size 15: 100,000 images of 224 x 224 need 15.1 GB, and {tmp_path} holds 0.0 GB of other images: give"
        f" --cache-size 16, or remove what is no longer used there, {old.folder} first"
    )
    assert not large.folder.exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    huge = CachedSet(tmp_path / "new", 10**9, (1000, 1000))
    with pytest.raises(WriteError, match=r"^1,000,000,000 images of 1000 x 1000 need 3\d{6}\.\d GB in the cache "):
        reserve(tmp_path, [huge], most=10**9)
    assert not huge.folder.exists()


def test_a_file_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file is a file: name a folder$"):
        reserve(tmp_path / "file", [CachedSet(tmp_path / "file" / "new", 1, (8, 8))], most=1)


def test_a_disk_that_fills_while_images_are_written_is_one_line(examples: list[Example], tmp_path: Path) -> None:
    cached = CachedSet.of(tmp_path / "cache", examples, HOW)
    cached.make()
    with files_of_at_most(1000), pytest.raises(WriteError, match=r"cannot be written: File too large; .*free some"):
        decode(cached, HOW, [*enumerate(examples)], again=False)
    assert cached.records()["state"][1:].any() == 0


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """To who writes, the same as a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_cache_that_is_removed_while_it_is_used_is_one_line(examples: list[Example], tmp_path: Path) -> None:
    cached = CachedSet(tmp_path / "gone", 5, (16, 16))
    with pytest.raises(DataError, match=r"gone was removed while it was in use: run the command again$"):
        decode(cached, HOW, [(0, examples[0])], again=False)
