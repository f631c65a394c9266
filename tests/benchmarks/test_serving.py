"""The service's benchmark in small: every answer is right, and the report says what was found."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import serving
from benchmarks.load import even, poisson, throughput, wrong
from benchmarks.serving_soak import GONE, History
from benchmarks.serving_speed import batch_sizes, compare, graph_seconds
from tests.support.load import Ask, Reply


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a quick run."""
    folder = tmp_path_factory.mktemp("serving")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["serving", "--quick", "--out", str(folder)])
        serving.main()
    return folder


def figures(out: Path, part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{part}.json").read_text())["figures"]
    return found


@pytest.mark.slow
def test_no_answer_is_of_another_task_or_version(out: Path) -> None:
    slots = figures(out, "slots")
    # Uploads take longer beside comparisons, so tasks are away for longer.
    for part, most, least in (("soak", 1e-5, 300), ("soak-auto", 0.3, 150)):
        soak = figures(out, part)
        assert (soak["wrong answers"], soak["other failures"]) == (0, 0)
        assert sum(soak[name] for name in ("right", "bad ones refused", "while removed", "busy")) == 400
        assert soak["right"] > least
        assert soak["bad ones refused"] > 10
        assert 0 < soak["largest error"] < most
    assert slots["right"] == slots["items"] >= 5000
    assert slots["replaced"] > 0
    assert slots["batches at once"] > 1
    assert figures(out, "workers")["not of the new version"] == 0
    for part in ("speed-s", "bare", "mixed", "embedded", "endurance"):
        assert figures(out, part)["wrong"] == 0
    assert 0 < figures(out, "bare")["share of the service's time in the graph"] <= 1
    assert figures(out, "load")["Poisson wrong"] == figures(out, "load")["steady wrong"] == 0


@pytest.mark.slow
def test_the_report_sets_every_aim_beside_what_was_measured(out: Path) -> None:
    text = (out / "serving.md").read_text()
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    for aim in serving.AIMS:
        (row,) = (row for row in table if row[0] == f"| {aim.part}" and row[1:2] == [aim.figure])
        assert row[2] == aim.words
        assert row[3] == serving.number(figures(out, aim.part)[aim.figure])
    assert (figures(out, "memory-16")["active"], figures(out, "memory-16")["registered"]) == (6, 12)
    assert figures(out, "memory-64")["KB of a task's tensors"] > 3 * figures(out, "memory-16")["KB of a task's tensors"]


def test_an_aim_is_met_or_missed_by_so_much_and_what_is_not_there_was_not_measured(tmp_path: Path) -> None:
    ratio = serving.Aim("bare", "ratio", least=0.9)
    assert (ratio.verdict(0.9), ratio.verdict(0.85)) == ("met", "missed by 0.05")
    growth = serving.Aim("endurance", "growth %", most=2)
    assert (growth.verdict(-1), growth.verdict(2.5)) == ("met", "missed by 0.5")
    assert "| bare | ratio | >= 0.9 | not measured |  |" in serving.report(tmp_path)


def test_an_unknown_part_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serving", "--only", "soak,slot", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        serving.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown part 'slot'; did you mean slots")
    assert not list(tmp_path.iterdir())


def test_a_part_s_first_word_means_all_parts_that_begin_so() -> None:
    assert serving.chosen_parts("speed,soak", ["speed-s", "speed-b", "soak", "slots"]) == ["speed-s", "speed-b", "soak"]
    assert serving.chosen_parts("", ["soak", "slots"]) == ["soak", "slots"]


def test_a_version_may_answer_from_the_begin_of_its_change_to_the_end_of_the_next() -> None:
    history = History([(-math.inf, -math.inf, "a"), (10, 12, "b"), (20, 21, GONE), (30, 31, "c")])
    assert history.possible(1, 2) == {"a"}
    assert history.possible(1, 10) == history.possible(11, 11) == {"a", "b"}
    assert history.possible(13, 14) == {"b"}
    assert history.possible(13, 20) == {"b", GONE}
    assert history.possible(22, 25) == {GONE}
    assert history.possible(11, 40) == {"a", "b", GONE, "c"}


def reply(status: int, label: str, task: str = "t", image: int = 3, start: float = 0, end: float = 1) -> Reply:
    return Reply(Ask(b"", "", task, image), start, end, status, {"predictions": [{"label": label}]})


def test_a_wrong_class_and_a_failure_are_wrong() -> None:
    given = [reply(200, "class-5"), reply(200, "class-3"), reply(503, "class-5"), reply(200, "class-0", image=30)]
    assert wrong(given, {"t": 2}, 32) == 2


def test_throughput_is_over_the_time_from_the_first_request_to_the_last_answer() -> None:
    assert throughput([reply(200, "", start=2, end=4), reply(200, "", start=3, end=6)]) == 0.5


def test_arrivals_come_at_their_rate() -> None:
    assert even(3, 2).tolist() == [0, 0.5, 1]
    gaps = np.diff(poisson(4000, 20))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.1)


def test_the_batches_are_found_again_from_the_lines_of_their_requests() -> None:
    lines = [{"batch": 4}] * 8 + [{"batch": 1}] * 3 + [{"batch": 3}] * 3
    assert sorted(batch_sizes(lines)) == [1, 1, 1, 3, 4, 4]


def test_a_batch_s_time_is_told_by_each_of_its_requests_and_counts_once() -> None:
    lines = [{"batch": 4, "run_ms": 200.0}] * 4 + [{"batch": 1, "run_ms": 30.0}]
    assert graph_seconds(lines) == pytest.approx(0.23)


def test_two_sides_are_measured_in_turn_and_the_first_is_over_the_second() -> None:
    order: list[str] = []

    def side(name: str, value: float) -> float:
        order.append(name)
        return value

    found = compare({"a": lambda: side("a", 3.0), "b": lambda: side("b", 2.0)}, rounds=4)
    assert found["ratio"] == found["low"] == found["high"] == pytest.approx(1.5)
    assert sorted(order) == ["a"] * 4 + ["b"] * 4
    assert {tuple(order[i : i + 2]) for i in range(0, 8, 2)} == {("a", "b"), ("b", "a")}
