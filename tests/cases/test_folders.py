"""Folders of images as people have them: what is in them besides images, and HEIC.

Each test is one reported folder. What comes out is the right images, or one line with the way out.
"""

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from mosa_deploy.bundles import heif
from mosa_deploy.bundles.image_files import find_images
from mosa_deploy.errors import DataError
from serving.errors import RequestError
from serving.images import read_pixels
from tests.support.images import PREPROCESS, jpeg, numbered, write_images
from tests.support.splits import names, refusal, sizes, two_classes
from training.tasks.folder import Folder

BRANDS = b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heicmiaf"
"""The first bytes of an iPhone's photo."""

INSTALL = "pip install 'mosa-deploy[heif]'"


@pytest.fixture
def no_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `heif` is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


def test_a_phones_100_heic_and_a_cameras_mpo(tmp_path: Path, no_heif: None) -> None:
    folder = two_classes(tmp_path, *numbered("oak/IMG_{}.HEIC", 100), *numbered("ash/IMG_{}.MPO", 50))
    splits = Folder().splits(folder, None)
    assert sum(sizes(splits)) == 60
    assert splits.remarks == (f"left out as no images: 100 .heic ({INSTALL} to read .heic)",)


def test_heic_with_the_extra(tmp_path: Path) -> None:
    splits = Folder().splits(two_classes(tmp_path, "oak/IMG.HEIC", "oak/IMG.heif", "ash/IMG.HIF"), None)
    assert (sum(sizes(splits)), splits.remarks) == (13, ())


def test_a_class_of_heic_alone_names_the_extra(tmp_path: Path, no_heif: None) -> None:
    folder = write_images(two_classes(tmp_path), *numbered("elm/{}.heic", 4))
    assert refusal(folder) == (
        f"class 'elm' in {folder} is empty (left out as no images: 4 .heic ({INSTALL} to read .heic)): add images or"
        " remove the folder"
    )


def test_an_mpo_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    two_classes(tmp_path)
    frames[0].save(tmp_path / "oak" / "stereo.mpo", save_all=True, append_images=frames[1:])
    splits = Folder().splits(tmp_path, None)
    parts = (splits.train, splits.validation, splits.test)
    (example,) = [example for part in parts for example in part if "stereo" in example.name]
    assert PREPROCESS.read(example.read())[0, 0, 0] > 250


def test_leftovers_of_systems_and_tools_are_no_images_and_no_classes(tmp_path: Path) -> None:
    folder = two_classes(
        tmp_path,
        *(".DS_Store", "oak/.DS_Store", "oak/._0.jpg", "oak/Thumbs.db", "desktop.ini", "ash/0.jpg:Zone.Identifier"),
        *("__MACOSX/oak/._0.jpg", "oak/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/oak/9.jpg", "ash/0.jpg~"),
        *(".ipynb_checkpoints/oak/0-checkpoint.jpg", "oak/.ipynb_checkpoints/0-checkpoint.jpg", "$RECYCLE.BIN/1.jpg"),
        *("System Volume Information/1.jpg", "lost+found/1.jpg"),
    )
    splits = Folder().splits(folder, None)
    assert splits.classes == ("ash", "oak")
    assert names(splits) == {*numbered("oak/{}.jpg", 5), *numbered("ash/{}.jpg", 5)}
    (remark,) = splits.remarks
    assert remark.startswith("skipped as leftovers of systems and tools: 2 ")
    for counted in ("2 .DS_Store", "2 .ipynb_checkpoints", "1 ._*", "1 __MACOSX"):
        assert counted in remark
    assert remark.endswith(" of other kinds")


def test_other_files_are_counted_by_suffix_in_any_case(tmp_path: Path) -> None:
    folder = two_classes(tmp_path, "oak/a.MOV", "oak/b.mov", "ash/labels.xml", "notes.txt", "oak/c.NEF")
    splits = Folder().splits(folder, None)
    assert splits.remarks == ("left out as no images: 2 .mov, 1 .nef, 1 .txt, 1 .xml",)


def test_an_image_without_a_suffix_is_read_by_its_content(tmp_path: Path) -> None:
    folder = two_classes(tmp_path, "oak/0a4f2c", "oak/photo.jpg_large", "oak/scan 2024.01.15")
    (folder / "oak" / "README").write_text("no image")
    splits = Folder().splits(folder, None)
    assert {"oak/0a4f2c", "oak/photo.jpg_large", "oak/scan 2024.01.15"} <= names(splits)
    assert splits.remarks == ("left out as no images: 1 without a suffix",)


@pytest.mark.parametrize("name", ["A.JPG", "a.JPeG", "a.jfif", "a.Png", "a.TIFF", "a.webp", "a.avif", "a.jp2"])
def test_suffixes_in_any_case(tmp_path: Path, name: str) -> None:
    assert f"oak/{name}" in names(Folder().splits(two_classes(tmp_path, f"oak/{name}"), None))


def test_images_beside_the_class_folders_are_counted(tmp_path: Path) -> None:
    splits = Folder().splits(two_classes(tmp_path, "cover.jpg"), None)
    assert splits.remarks == (f"left out: 1 image(s) of {tmp_path} outside any class folder, such as 'cover.jpg'",)


def test_a_folder_of_notes_beside_the_classes_is_named_with_what_it_holds(tmp_path: Path) -> None:
    two_classes(tmp_path, "annotations/0.xml")
    assert refusal(tmp_path).startswith(f"class 'annotations' in {tmp_path} is empty (left out as no images: 1 .xml): ")


def test_broken_links_and_links_upwards_are_counted(tmp_path: Path) -> None:
    two_classes(tmp_path / "trees")
    (tmp_path / "trees" / "oak" / "lost.jpg").symlink_to(tmp_path / "moved.jpg")
    (tmp_path / "trees" / "oak" / "up").symlink_to(tmp_path)
    splits = Folder().splits(tmp_path / "trees", None)
    assert sum(sizes(splits)) == 10
    assert "1 broken link(s)" in splits.remarks[0]
    assert "1 link(s) to a folder above" in splits.remarks[0]


def test_a_pipe_with_the_name_of_an_image_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(two_classes(tmp_path) / "oak" / "live.jpg")
    splits = Folder().splits(tmp_path, None)
    assert splits.remarks == ("left out as no images: 1 pipe(s) or device(s)",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    locked = two_classes(tmp_path) / "oak"
    locked.chmod(0)
    try:
        assert refusal(tmp_path) == (f"{locked} cannot be listed (Permission denied): make it readable, or remove it")
    finally:
        locked.chmod(0o755)


def test_a_file_name_that_is_not_utf_8_can_be_printed(tmp_path: Path) -> None:
    two_classes(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path / "oak") + b"/caf\xe9.jpg")).write_bytes(jpeg())
    assert r"oak/caf\xe9.jpg" in names(Folder().splits(tmp_path, None))


def test_a_class_name_that_is_not_utf_8_is_refused_by_name(tmp_path: Path) -> None:
    two_classes(tmp_path)
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "0.jpg").write_bytes(jpeg())
    assert refusal(tmp_path) == rf"class caf\xe9 in {tmp_path} has a name that is not UTF-8: rename it"


def test_a_folder_to_predict_counts_what_it_leaves_out(tmp_path: Path, no_heif: None) -> None:
    found = find_images([two_classes(tmp_path, "oak/a.HEIC", ".DS_Store", "__MACOSX/oak/._0.jpg")])
    assert len(found.images) == 10
    assert found.left_out == (
        f"left out as no images: 1 .heic ({INSTALL} to read .heic); skipped as leftovers of systems and tools: 1"
        " .DS_Store, 1 __MACOSX"
    )


def test_a_folder_of_heic_alone_names_the_extra(tmp_path: Path, no_heif: None) -> None:
    write_images(tmp_path, *numbered("{}.heic", 3))
    with pytest.raises(DataError) as caught:
        find_images([tmp_path])
    assert str(caught.value) == (
        f"no images in {tmp_path} (left out as no images: 3 .heic ({INSTALL} to read .heic)): give images, or folders"
        " of images"
    )


def heic() -> bytes:
    assert heif.installed()
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 20, 20)).save(buffer, "HEIF")
    return buffer.getvalue()


def test_heic_is_decoded_with_the_extra() -> None:
    pixels = PREPROCESS.read(heic())
    assert abs(pixels.astype(int) - (200, 20, 20)).max() <= 3
    (served,) = read_pixels(heic(), [PREPROCESS], 10_000)
    assert (served == pixels).all()


def test_heic_without_the_extra_names_it(no_heif: None) -> None:
    said = f"a HEIC image, which needs an extra here: {INSTALL}, or convert the image to JPEG"
    with pytest.raises(DataError) as caught:
        PREPROCESS.read(BRANDS)
    assert str(caught.value) == said
    with pytest.raises(RequestError) as refused:
        read_pixels(BRANDS, [PREPROCESS], 10_000)
    assert (refused.value.status, refused.value.reason) == (415, said)


def test_a_table_beside_a_single_folder_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, *numbered("images/{}.jpg", 10))
    (tmp_path / "labels.csv").write_text("file,label\n")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds 1 class folder(s): a task needs at least two; if labels.csv names the classes, give it with"
        " --labels"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file): copy or download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS): fetch the image itself with"),
        (b"\n<!DOCTYPE html><html>", "a web page): download the image itself"),
        (jpeg(size=64)[:-300], "OSError), damaged or cut off: give a PNG, JPEG or WebP file"),
    ],
    ids=["empty", "Git LFS", "web page", "cut off"],
)
def test_what_is_no_image_is_told_by_what_it_is(content: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        PREPROCESS.read(content)
    assert reason in str(caught.value)
