"""The parts of `mosa score`: what it is given, and what it refuses; processes that decode, and rows of answers."""

import math
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from mosa_deploy.bundles.answers import PerLabel
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ConfigError, DataError, ProviderError, WriteError
from mosa_deploy.utils.extras import require_package
from serving import score_output
from serving.lanes import SharedLane
from serving.score_decode import CHUNK_BYTES, Decoders, Encoded, Reading, chunks
from serving.score_output import SCHEMA, Answers, RunFolder, rows_of
from serving.score_tasks import Pass, opened
from serving.settings import Settings
from tests.support.score import DEADLY, SETTINGS, deadly, files, rows, run, write_parquet, write_tar
from tests.support.tasks import TaskMaker, picture


@pytest.fixture
def images(maker: TaskMaker, tmp_path: Path) -> Path:
    """A folder with one image, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.png").write_bytes(maker.images[0])
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.mark.parametrize("kept", [1000, 1536])
def test_a_tar_that_is_cut_short_is_named_and_goes_on_once_it_is_whole(
    maker: TaskMaker, tmp_path: Path, kept: int
) -> None:
    write_tar(tmp_path / "tars" / "a.tar", {"a.ppm": b"P6 8 8 255 " + bytes(192)})
    whole = write_tar(tmp_path / "tars" / "b.tar", {"b.ppm": b"P6 20 20 255 " + bytes(1200)}).read_bytes()
    # In the middle of a member, and after its last block, where the library itself notices nothing.
    (tmp_path / "tars" / "b.tar").write_bytes(whole[: kept if kept == 1000 else 512 + kept])
    with pytest.raises(DataError, match=r"^1 of 2 shards have no answers: .*b\.tar is cut short or damaged"):
        run(maker, tmp_path / "tars", tmp_path / "out")
    assert files(tmp_path / "out") == ["a.tar.parquet"]
    (tmp_path / "tars" / "b.tar").write_bytes(whole)
    run(maker, tmp_path / "tars", tmp_path / "out")
    assert [file for task, file, _, _ in rows(tmp_path / "out") if task == "birds"] == ["a.tar/a.ppm", "b.tar/b.ppm"]


def test_a_parquet_file_that_is_cut_short_is_named_and_the_others_are_answered(
    maker: TaskMaker, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "data" / "a.parquet", maker.images[:2])
    cut = write_parquet(tmp_path / "data" / "b.parquet", maker.images[:2])
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"^1 of 2 shards have no answers: .*b\.parquet is cut short or damaged"):
        run(maker, tmp_path / "data", tmp_path / "out")
    assert files(tmp_path / "out") == ["a.parquet"]


def test_a_column_that_holds_no_bytes_is_refused_with_those_that_do(maker: TaskMaker, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "data" / "a.parquet", maker.images[:2])
    with pytest.raises(ConfigError, match=r"a\.parquet has no column 'label' of bytes: give --column as image$"):
        run(maker, path, tmp_path / "out", "--column", "label")


def test_images_beside_shards_are_not_passed_by(maker: TaskMaker, images: Path, tmp_path: Path) -> None:
    write_tar(images / "a.tar", {})
    with pytest.raises(DataError, match=r"images holds both images and a\.tar: name one kind, such as '.*/\*\.tar'$"):
        run(maker, images, tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("none", "no such file or folder"),
        ("*.zip", "no such file or folder"),
        ("images/notes.txt", "no tar or Parquet"),
    ],
)
def test_a_place_without_images_is_named(
    maker: TaskMaker, images: Path, tmp_path: Path, place: str, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        run(maker, tmp_path / place, tmp_path / "out")


def test_all_unknown_tasks_are_named_before_anything_is_scored(maker: TaskMaker, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^unknown task 'bird'; did you mean birds\?; unknown task 'x'; known: "):
        run(maker, images, tmp_path / "out", tasks="bird,fields,x")
    assert files(tmp_path / "out") == []


def test_impossible_options_are_named_at_once(maker: TaskMaker, images: Path) -> None:
    message = r"^--top-k 0: at least 1; --workers -1: at least 0; --tasks names none: .*; --out .* holds the images"
    with pytest.raises(ConfigError, match=message):
        run(maker, images, images, "--top-k", "0", "--workers", "-1", tasks=",")


def test_an_address_without_a_cluster_is_told_and_nothing_is_scored(
    maker: TaskMaker, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^--ray 127\.0\.0\.1:1: nothing answers there"):
        run(maker, images, tmp_path / "out", "--ray", "127.0.0.1:1")
    assert files(tmp_path / "out") == []


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(ProviderError, match=r"^no_such_package is not .*: pip install 'mosa-deploy\[score\]'$"):
        require_package("no_such_package", "score")


def test_one_process_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    with (
        RunFolder.locked(tmp_path / "out"),
        pytest.raises(WriteError, match="another process writes"),
        RunFolder.locked(tmp_path / "out"),
    ):
        pass


def test_tasks_that_can_share_a_pass_do(maker: TaskMaker, archives: Mapping[str, Archive]) -> None:
    pixels = [maker.preprocess.read(maker.images[0])[None]]
    with opened(
        Settings.model_validate({**SETTINGS, "artifacts": str(maker.root)}), ["fields", "fields.b", "birds", "cracks"]
    ) as tasks:
        asked = tasks.ask(pixels)
        assert [len(batches) for batches in asked] == [1, 1, 1]
        assert len({id(each.lane) for each in tasks.passes}) == 1
        assert len(list(tasks.answers(asked))) == 4


def test_every_stream_runs_batches_of_its_own_and_answers_as_all_cores_do(
    maker: TaskMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = [np.stack([maker.preprocess.read(content) for content in maker.images])]
    found, in_streams, infer = {}, list[bool](), SharedLane.infer

    def noted(self: SharedLane, images: Array, slots: Any, stream: bool = False) -> Array:
        in_streams.append(stream)
        return infer(self, images, slots, stream)

    monkeypatch.setattr(SharedLane, "infer", noted)
    for gain in (0.0, math.inf):
        monkeypatch.setattr("serving.warming.GAIN", gain)
        settings = Settings.model_validate({"threads": 2, "runtime": "onnxruntime-cpu", "artifacts": str(maker.root)})
        with opened(settings, ["fields", "birds"]) as tasks:
            in_streams.clear()
            asked = tasks.ask(pixels)
            found[tasks.streams] = {task.version.record.task: scores for task, scores in tasks.answers(asked)}
            assert set(in_streams) == {tasks.streams > 1}
            lane = tasks.tasks[0].lane
            assert [each.size for each in tasks.passes] == [(lane.streams or lane).sizes[-1]] * 2
            sizes = [each.size for each in tasks.passes]
            assert [len(batches) for batches in asked] == [-(-len(maker.images) // size) for size in sizes]
    assert list(found) == [1, 2]
    for name, scores in found[1].items():
        np.testing.assert_allclose(found[2][name], scores, atol=1e-5)


def test_a_graph_that_fails_ends_the_run_with_one_line(
    maker: TaskMaker, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Pass, images: Array) -> Array:
        raise RuntimeError("Failed to allocate memory\nat line 7")

    monkeypatch.setattr(Pass, "run", failing)
    with pytest.raises(ProviderError, match=r"^inference failed: Failed to allocate memory; if memory is short, MOSA_"):
        run(maker, images, tmp_path / "out")
    assert files(tmp_path / "out") == []


def test_an_image_without_any_of_several_labels_has_one_empty_row(archives: Mapping[str, Archive]) -> None:
    record = archives["birds"].bundle().record
    count = len(record.classes)
    per_label = PerLabel(scales=(1.0,) * count, offsets=(0.0,) * count, thresholds=(0.5,) * count)
    scores = np.zeros((3, count), dtype=np.float32)
    scores[0, [1, 2]], scores[2, 4] = (0.6, 0.8), 0.9
    found = rows_of(record.model_copy(update={"per_label": per_label}), ["a", "b", "c"], scores, None).to_pylist()
    assert [(row["file"], row["class"], row["score"] and round(row["score"], 2)) for row in found] == [
        ("a", record.classes[2], 0.8),
        ("a", record.classes[1], 0.6),
        ("b", None, None),
        ("c", record.classes[4], 0.9),
    ]


def test_an_image_on_which_a_task_overflows_is_listed(archives: Mapping[str, Archive], tmp_path: Path) -> None:
    record = archives["birds"].bundle().record
    scores = np.zeros((2, len(record.classes)), dtype=np.float32)
    scores[0, 3] = np.nan
    with pyarrow.parquet.ParquetWriter(tmp_path / "answers.parquet", SCHEMA) as writer:
        answers = Answers(writer, None)
        answers.add(record, ["a", "b"], scores)
        answers.flush()
    assert answers.unreadable == [("a", "'birds' overflows on this image: tune it again")]
    assert [row[1] for row in rows(tmp_path)] == ["b"]


def test_answers_are_written_before_there_are_many_and_each_once(
    archives: Mapping[str, Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_output, "SCORES", 400)
    monkeypatch.setattr(score_output, "ROW_GROUP", 8)
    records = [archives[name].bundle().record for name in ("birds", "fields")]
    path = tmp_path / "answers.parquet"
    with pyarrow.parquet.ParquetWriter(path, SCHEMA) as writer:
        answers = Answers(writer, None)
        for start in range(0, 30, 3):
            for record in records:
                scores = np.eye(len(record.classes), dtype=np.float32)[[start % 5, 1, 2]]
                answers.add(record, [str(start + i) for i in range(3)], scores)
        answers.flush()
    found = {row[:3] for row in rows(path)}
    wanted = {(record.task, str(i), record.classes[(i % 5, 1, 2)[i % 3]]) for record in records for i in range(30)}
    assert found == wanted
    assert len(rows(path)) == len(wanted)
    groups = pyarrow.parquet.read_metadata(path)
    sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
    assert len(sizes) > 2
    assert max(sizes) < 20


def test_large_images_are_sent_to_processes_in_small_chunks() -> None:
    large = [Encoded(str(i), bytes(CHUNK_BYTES // 2)) for i in range(5)]
    assert [[image.name for image in part] for part in chunks(large, 4)] == [["0", "1"], ["2", "3"], ["4"]]
    small = [Encoded(str(i), b"") for i in range(9)]
    assert [len(part) for part in chunks(small, 4)] == [4, 4, 1]


def test_processes_decode_in_order_and_never_far_ahead(maker: TaskMaker, tmp_path: Path) -> None:
    read = []

    def given() -> Iterator[Encoded]:
        for i in range(12):
            read.append(i)
            yield Encoded(str(i), maker.images[i] if i != 3 else b"bad")

    with Decoders(1, Reading((maker.preprocess,), 10_000), size=2) as decoders:
        found = decoders.decoded(given())
        first = next(found)
        assert len(read) <= 8
        rest = list(found)
    names = [name for chunk in (first, *rest) for name in chunk.names]
    assert names == [str(i) for i in range(12) if i != 3]
    assert [name for chunk in (first, *rest) for name, _ in chunk.faults] == ["3"]
    pixels = np.concatenate([chunk.pixels[0] for chunk in (first, *rest)])
    np.testing.assert_array_equal(pixels[names.index("7")], maker.preprocess.read(maker.images[7]))


def test_an_image_that_kills_its_process_costs_its_shard_alone_and_is_tried_again(
    maker: TaskMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = tmp_path / "tars"
    write_tar(tars / "a.tar", {"0.png": maker.images[0]})
    whole = {f"{i}.png": maker.images[i] for i in range(1, 5)}
    write_tar(tars / "b.tar", whole | {"bad.png": picture(size=DEADLY)})
    write_tar(tars / "c.tar", {"5.png": maker.images[5]})
    with monkeypatch.context() as patch:
        path = [str(deadly(tmp_path / "path")), *filter(None, sys.path)]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        with pytest.raises(SystemExit) as ended:
            run(maker, tars, tmp_path / "out", "--workers", "1")
    assert ended.value.code == 1
    (error,) = capsys.readouterr().err.splitlines()
    reason = "b.tar.parquet: the process that decodes b.tar/bad.png has died 3 times, perhaps for want of memory: "
    assert error.startswith(f"error: 1 of 3 shards have no answers: {reason}")
    assert files(tmp_path / "out") == ["a.tar.parquet", "c.tar.parquet"]
    run(maker, tars, tmp_path / "out", "--workers", "1")
    assert len(rows(tmp_path / "out")) == 2 * (len(whole) + 3)


def test_images_on_their_way_when_a_process_dies_are_decoded_by_another(maker: TaskMaker) -> None:
    given = [Encoded(str(i), maker.images[i % 16]) for i in range(40)]
    with Decoders(1, Reading((maker.preprocess,), 10_000), size=2) as decoders:
        found = decoders.decoded(given)
        next(found)
        (process,) = multiprocessing.active_children()
        process.kill()
        names = [name for chunk in found for name in chunk.names]
    assert names == [str(i) for i in range(2, 40)]
