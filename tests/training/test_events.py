import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from training.events import EVENTS, closing, write_events
from training.loop import Row


def history(epochs: int) -> list[Row]:
    return [
        {"epoch": epoch, "cross_entropy": 2 / epoch, "lr": 1e-3 * epoch, "validation_accuracy": 1 - 0.5 / epoch}
        for epoch in range(1, epochs + 1)
    ]


def read(out: Path) -> EventAccumulator:
    """What TensorBoard sees in the folder."""
    return EventAccumulator(str(out)).Reload()


def points(read: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read.Scalars(name)]


def check(read: EventAccumulator, rows: list[Row]) -> None:
    """Every column is a curve with one point a row, to the precision of fp32."""
    assert set(read.Tags()["scalars"]) >= rows[0].keys() - {"epoch"}
    assert "epoch" not in read.Tags()["scalars"]
    for name in rows[0].keys() - {"epoch"}:
        expected = [(int(row["epoch"]), float(np.float32(row[name]))) for row in rows]
        assert points(read, name) == expected


def test_each_column_is_a_curve_and_whoever_watches_sees_each_epoch_as_it_ends(tmp_path: Path) -> None:
    write_events(tmp_path, history(1))
    watcher = read(tmp_path)
    for epochs in (1, 2, 3):
        write_events(tmp_path, history(epochs))
        check(watcher.Reload(), history(epochs))
    check(read(tmp_path), history(3))


def test_rows_that_a_kill_kept_from_the_file_come_with_the_next(tmp_path: Path) -> None:
    write_events(tmp_path, history(1))
    write_events(tmp_path, history(4))
    check(read(tmp_path), history(4))


@pytest.mark.parametrize("lost", [1, 5, 40])
def test_record_that_a_kill_cut_short_is_written_again(tmp_path: Path, lost: int) -> None:
    write_events(tmp_path, history(2))
    path = tmp_path / EVENTS
    path.write_bytes(path.read_bytes()[:-lost])
    check(read(tmp_path), history(1))
    write_events(tmp_path, history(3))
    check(read(tmp_path), history(3))


@pytest.mark.parametrize("size", [0, 7])
def test_file_that_a_kill_left_without_a_record_is_begun_anew(tmp_path: Path, size: int) -> None:
    (tmp_path / EVENTS).write_bytes(b"\x00" * size)
    write_events(tmp_path, history(2))
    check(read(tmp_path), history(2))


def test_run_that_begins_anew_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    write_events(tmp_path, history(5))
    again = [{**row, "cross_entropy": 7.0} for row in history(2)]
    write_events(tmp_path, again)
    check(read(tmp_path), again)


def test_curves_of_a_probe_are_over_its_values_of_c(tmp_path: Path) -> None:
    write_events(tmp_path, [{"c": 10.0**power, "validation_accuracy": 0.5} for power in (-1, 0, 1)])
    assert points(read(tmp_path), "c") == [(1, pytest.approx(0.1)), (2, 1.0), (3, 10.0)]


def test_end_holds_text_pictures_and_hyperparameters_once(tmp_path: Path) -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(pixels).save(tmp_path / "confusion.png")
    end = closing("# few", [tmp_path / "confusion.png"], {"lr": 0.5, "share": "down"}, {"accuracy": 0.75})
    for _ in range(2):
        write_events(tmp_path, history(3), end)
    seen = read(tmp_path)
    check(seen, history(3))
    assert points(seen, "kept/accuracy") == [(3, 0.75)]
    (text,) = seen.Tensors("report/text_summary")
    assert text.tensor_proto.string_val[0] == b"# few"
    (picture,) = seen.Images("confusion")
    assert picture.step == 3
    assert np.array_equal(np.asarray(Image.open(BytesIO(picture.encoded_image_string))), pixels)
    hyperparameters = seen.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"share" in hyperparameters
    assert b"down" in hyperparameters


def test_tensorboard_finds_each_run_under_its_own_name(tmp_path: Path) -> None:
    for name in ("digits", "flowers"):
        (tmp_path / name).mkdir()
        write_events(tmp_path / name, history(2))
    assert EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Runs().keys() == {"digits", "flowers"}


def test_importing_the_command_does_not_load_tensorboard() -> None:
    code = "import sys, training.report, training.tune; print('tensorboard' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert answer.stdout == "False\n"
