"""`mosa score`: every image of an archive by every task, once, whatever interrupts it."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pyarrow.parquet
import pytest

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import StoreError
from tests.support.score import files, rows, run, unreadable, write_parquet, write_tar
from tests.support.tasks import TaskMaker
from tests.support.waiting import wait_for
from tests.support.walker import ROOT

COUNT = 6
"""Images of the archive."""


@pytest.fixture
def images(maker: TaskMaker, tmp_path: Path) -> Path:
    """A folder of images, one of them in a folder below, and a file that is none."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for i in range(COUNT):
        (folder / ("below" if i == 0 else "") / f"{i}.png").write_bytes(maker.images[i])
    (folder / "notes.txt").write_text("none")
    return folder


def test_every_image_has_a_row_with_the_likeliest_class_of_every_task(
    maker: TaskMaker, archives: Mapping[str, Archive], offline: Mapping[str, Array], images: Path, tmp_path: Path
) -> None:
    run(maker, images, tmp_path / "out", tasks="all")
    found = {(task, file): (label, value) for task, file, label, value in rows(tmp_path / "out")}
    names = ["below/0.png", *(f"{i}.png" for i in range(1, COUNT))]
    assert found.keys() == {(task, name) for task in archives for name in names}
    for task, archive in archives.items():
        for i, name in enumerate(names):
            label, value = found[task, name]
            assert label == archive.bundle().record.classes[offline[task][i].argmax()]
            assert value == pytest.approx(offline[task][i].max(), abs=1e-4)


def test_answers_name_the_bundle_that_gave_them(
    maker: TaskMaker, archives: Mapping[str, Archive], images: Path, tmp_path: Path
) -> None:
    run(maker, images, tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out")
    assert table.column_names == ["file", "task", "class", "score", "bundle"]
    pairs = {(row["task"], row["bundle"]) for row in table.to_pylist()}
    assert pairs == {(task, archives[task].bundle().digest) for task in ("birds", "fields")}


def test_tar_shards_give_the_same_answers_as_a_folder(maker: TaskMaker, images: Path, tmp_path: Path) -> None:
    run(maker, images, tmp_path / "out")
    members = {"below/0.png": maker.images[0], "labels.json": b"{}", "1.png": maker.images[1]}
    write_tar(tmp_path / "tars" / "a.tar", members)
    write_tar(tmp_path / "tars" / "b.tar", {f"{i}.png": maker.images[i] for i in range(2, COUNT)})
    run(maker, f"{tmp_path}/tars/*.tar", tmp_path / "by-tar")
    assert files(tmp_path / "by-tar") == ["a.tar.parquet", "b.tar.parquet"]
    found = sorted((task, file.partition("/")[2], label) for task, file, label, _ in rows(tmp_path / "by-tar"))
    assert found == [(task, file, label) for task, file, label, _ in rows(tmp_path / "out")]


def test_a_parquet_column_gives_the_same_answers_and_an_empty_cell_is_listed(
    maker: TaskMaker, images: Path, tmp_path: Path
) -> None:
    run(maker, images, tmp_path / "out")
    path = write_parquet(tmp_path / "data" / "train.parquet", [*maker.images[:COUNT], None])
    run(maker, path, tmp_path / "by-column")
    wanted = [(task, label) for task, _, label, _ in rows(tmp_path / "out")]
    assert sorted((task, label) for task, _, label, _ in rows(tmp_path / "by-column")) == sorted(wanted)
    assert {file for _, file, _, _ in rows(tmp_path / "by-column")} == {f"train.parquet#{i}" for i in range(COUNT)}
    ((file, reason),) = unreadable(tmp_path / "by-column")
    assert (file, reason.partition(":")[0]) == (f"train.parquet#{COUNT}", "the image is empty, 0 bytes")


def test_top_k_gives_as_many_rows_of_each_task(maker: TaskMaker, images: Path, tmp_path: Path) -> None:
    run(maker, images, tmp_path / "out", "--top-k", "3")
    assert len(rows(tmp_path / "out")) == 2 * 3 * COUNT


def test_a_stopped_run_makes_only_the_shards_that_are_missing(maker: TaskMaker, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(maker, images, out, "--shard-images", "2")
    whole, shards = rows(out), files(out)
    assert shards == [f"images-0000{i}.parquet" for i in range(3)]
    (out / shards[1]).unlink()
    (out / f".{shards[1]}.99.tmp").write_bytes(b"half")
    before = {name: (out / name).stat().st_mtime_ns for name in shards[::2]}
    run(maker, images, out, "--shard-images", "2")
    assert {name: (out / name).stat().st_mtime_ns for name in shards[::2]} == before
    assert rows(out) == whole
    assert not list(out.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("options", "tasks", "reason"),
    [
        (["--top-k", "2"], "birds,fields", "top_k was None and is 2"),
        ([], "birds,grains", "task 'fields' was .*, shared by .* and is not asked; task 'grains' was not asked and is"),
    ],
)
def test_another_run_into_the_same_folder_is_refused_by_name(
    maker: TaskMaker, images: Path, tmp_path: Path, options: list[str], tasks: str, reason: str
) -> None:
    run(maker, images, tmp_path / "out")
    with pytest.raises(StoreError, match=rf"out holds another run: {reason}"):
        run(maker, images, tmp_path / "out", *options, tasks=tasks)


def test_images_that_have_changed_since_are_not_mixed(maker: TaskMaker, images: Path, tmp_path: Path) -> None:
    run(maker, images, tmp_path / "out")
    (images / "more.png").write_bytes(maker.images[7])
    with pytest.raises(StoreError, match=r"the images of .*images-00000\.parquet have changed since it was made"):
        run(maker, images, tmp_path / "out")


def test_a_file_of_someone_else_is_never_taken_for_a_finished_shard(
    maker: TaskMaker, images: Path, tmp_path: Path
) -> None:
    path = write_parquet(tmp_path / "out" / "images-00000.parquet", [b""])
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"images-00000\.parquet is no file of this run: move it away"):
        run(maker, images, tmp_path / "out")
    assert path.read_bytes() == before


def test_a_bad_image_is_listed_with_its_reason_and_the_others_are_answered(
    maker: TaskMaker, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "bad.jpg").write_bytes(b"no image")
    run(maker, images, tmp_path / "out", "--shard-images", "4")
    assert len(rows(tmp_path / "out")) == 2 * COUNT
    ((file, reason),) = unreadable(tmp_path / "out")
    assert (file, reason.partition(":")[0]) == ("bad.jpg", "not an image of a known type")
    printed = capsys.readouterr().out
    assert f"2 tasks have answered {COUNT} of {COUNT + 1} images in 2 of 2 shards, 0 of them before" in printed
    assert "left out as no images: 1 .txt" in printed


@pytest.mark.slow
def test_a_run_that_is_killed_has_every_row_once_in_the_end(maker: TaskMaker, tmp_path: Path) -> None:
    out, count = tmp_path / "out", 240
    (tmp_path / "images").mkdir()
    for i in range(count):
        (tmp_path / "images" / f"{i:03d}.png").write_bytes(maker.images[i % len(maker.images)])
    arguments = ["--store", maker.root, "--tasks", "birds,fields", "--images", tmp_path / "images", "--out", out]
    arguments += ["--shard-images", "20", "--workers", "2"]
    code = "import sys; from serving.commands import score; score(sys.argv[1:], 'mosa score')"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT)
    wait_for(lambda: len(files(out)) > 1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(files(out)) < count // 20
    wait_for(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in children), 20)
    subprocess.run(command, cwd=ROOT, check=True)
    found = [(task, file) for task, file, _, _ in rows(out)]
    assert found == sorted((task, f"{i:03d}.png") for task in ("birds", "fields") for i in range(count))
