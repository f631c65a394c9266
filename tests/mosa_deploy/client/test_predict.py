import csv
import os
from pathlib import Path

import pytest

from mosa_deploy import Predictor
from mosa_deploy.cli import predict
from mosa_deploy.errors import ConfigError, DataError
from tests.support.images import write_images
from tests.support.tasks import picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images, one of them in a folder below."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "below/c.png")):
        (folder / name).write_bytes(picture(seed))
    return folder


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as handle:
        return list(csv.reader(handle))


def run(store: Path, *arguments: Path | str) -> None:
    predict([str(store / "tasks" / "digits"), *map(str, arguments)], "mosa predict")


def test_every_image_has_a_line_with_its_class_and_score(store: Path, images: Path, tmp_path: Path) -> None:
    run(store, images, "--out", tmp_path / "out.csv")
    head, *lines = rows(tmp_path / "out.csv")
    answers = [Predictor.open(store / "tasks" / "digits").classify(path) for path in sorted(images.rglob("*.png"))]
    assert head == ["file", "class", "score"]
    assert [line[0] for line in lines] == [str(path) for path in sorted(images.rglob("*.png"))]
    assert [line[1] for line in lines] == [answer.label for answer in answers]
    assert [float(line[2]) for line in lines] == [
        pytest.approx(answer.predictions[0].score, abs=1e-5) for answer in answers
    ]


def test_top_k_gives_as_many_lines(store: Path, images: Path, tmp_path: Path) -> None:
    run(store, images / "a.png", "--top-k", "3", "--out", tmp_path / "out.csv")
    assert len(rows(tmp_path / "out.csv")) == 1 + 3


def test_unreadable_files_are_listed_and_the_others_answered(
    store: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^1 of 4 images cannot be read, see above"):
        run(store, images, "--batch", "2", "--out", tmp_path / "out.csv")
    assert len(rows(tmp_path / "out.csv")) == 1 + 3
    assert f"not answered: {images}/bad.jpg: not a readable image" in capsys.readouterr().out


def test_a_folder_without_images_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^no images in .*empty: give images, or folders of images$"):
        run(store, tmp_path / "empty")


def test_a_place_that_is_not_there_is_named(store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: no such file or folder"):
        run(store, tmp_path / "none")


def test_impossible_numbers_are_named_at_once(store: Path, images: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--top-k 0: at least 1; --batch -1: at least 1$"):
        run(store, images, "--top-k", "0", "--batch", "-1")


def test_an_image_is_never_overwritten_by_the_csv(store: Path, images: Path) -> None:
    before = (images / "a.png").read_bytes()
    with pytest.raises(ConfigError, match=r"a\.png: the CSV to write, not an image$"):
        run(store, images, "--out", str(images / "a.png"))
    assert (images / "a.png").read_bytes() == before


def test_an_unknown_runner_is_named(store: Path, images: Path) -> None:
    with pytest.raises(ConfigError, match="unknown runner 'onnx'; did you mean"):
        run(store, images, "--runner", "onnx")


def test_what_a_folder_leaves_out_is_counted_and_odd_names_are_written(
    store: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(images, "clip.MOV", "Thumbs.db")
    for name in (b"caf\xe9.png", b"\xe9.jpg"):
        Path(os.fsdecode(os.fsencode(images) + b"/" + name)).write_bytes(picture(4) if name.endswith(b"png") else b"no")
    with pytest.raises(DataError, match=r"^1 of 5 images cannot be read"):
        run(store, images, "--out", tmp_path / "out.csv")
    assert rf"{images}/caf\xe9.png" in [line[0] for line in rows(tmp_path / "out.csv")]
    printed = capsys.readouterr().out
    assert "left out as no images: 1 .mov; skipped as leftovers of systems and tools: 1 Thumbs.db\n" in printed
    assert rf"not answered: {images}/\xe9.jpg: not a readable image" in printed
