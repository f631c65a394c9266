"""Processes that carry out command lines of `mosa`, several at a time."""

from pathlib import Path

import psutil
import pytest

from training.fleet.crew import Crew, Told, Work

VERSION, WRONG = ["--version"], ["tunee"]


def work(folder: Path, name: str, *lines: list[str]) -> Work:
    return Work(name, lines, folder / "logs" / f"{name}.log")


def test_a_task_that_fails_stops_no_other_and_its_fault_is_the_error_of_its_log(tmp_path: Path) -> None:
    ended: list[tuple[str, int, bool]] = []

    def told(work: Work, place: int, seconds: float, finished: bool) -> None:
        assert seconds >= 0
        ended.append((work.name, place, finished))

    works = [work(tmp_path, "bad", VERSION, WRONG, VERSION), work(tmp_path, "good", VERSION, VERSION)]
    faults = Crew(2, told).carry_out(works)
    assert set(ended) == {("bad", 0, True), ("bad", 1, False), ("good", 0, True), ("good", 1, True)}
    assert faults.keys() == {"bad"}
    assert faults["bad"].place == 1
    assert faults["bad"].text.startswith("unknown command 'tunee'; did you mean tune?")
    assert (tmp_path / "logs" / "good.log").read_text().count("$ mosa --version\nmosa-deploy ") == 2


def test_a_process_that_is_killed_is_the_fault_of_the_command_that_it_was_at(tmp_path: Path) -> None:
    ended: list[int] = []

    def kill(work: Work, place: int, seconds: float, finished: bool) -> None:
        ended.append(place)
        for child in psutil.Process().children():
            child.kill()

    faults = Crew(1, kill).carry_out([work(tmp_path, "killed", *[["--help"]] * 50)])
    assert faults["killed"].text == "killed by SIGKILL, perhaps for want of memory"
    assert faults["killed"].place == len(ended) < 50


def test_a_fault_of_an_earlier_time_is_not_told_again(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "a.log"
    log.parent.mkdir()
    log.write_text("error: of yesterday\n")
    faults = Crew(1, nothing).carry_out([work(tmp_path, "a", ["predict"])])
    assert faults["a"].text == "mosa predict: error: the following arguments are required: task, images"
    assert log.read_text().startswith("error: of yesterday\n$ mosa predict\n")


def nothing(work: Work, place: int, seconds: float, finished: bool) -> None:
    pass


def test_no_process_is_left_when_the_one_that_waits_is_interrupted(tmp_path: Path) -> None:
    def interrupted(work: Work, place: int, seconds: float, finished: bool) -> None:
        raise KeyboardInterrupt

    told: Told = interrupted
    works = [work(tmp_path, name, VERSION, *[["--help"]] * 50) for name in ("a", "b", "c")]
    with pytest.raises(KeyboardInterrupt):
        Crew(2, told).carry_out(works)
    assert not psutil.Process().children()
    texts = [path.read_text() for path in (tmp_path / "logs").iterdir()]
    assert all(text.count("$ mosa --help") < 50 for text in texts)
