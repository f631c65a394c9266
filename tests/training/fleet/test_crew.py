"""Processes that carry out command lines of `mosa`, several at a time."""

import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.images import jpeg
from training.fleet.crew import PYTHON, Crew, Work

VERSION, WRONG = ["--version"], ["tunee"]


def work(folder: Path, name: str, *lines: list[str]) -> Work:
    return Work(name, lines, folder / "logs" / f"{name}.log")


def carrying_out() -> list[psutil.Process]:
    """The processes that carry out command lines. Others, such as joblib's, serve the tests that come later."""
    found = (child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE)
    return [child for child in found if PYTHON[-1] in child.cmdline()]


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


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[list[str]]:
    """A command line that waits for an answer which does not come."""
    (tmp_path / "image.jpg").write_bytes(jpeg())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        yield ["ask", str(tmp_path / "image.jpg"), "--task", "a", "--address", address]


def test_a_process_that_is_killed_is_the_fault_of_the_command_that_it_was_at(
    tmp_path: Path, endless: list[str]
) -> None:
    def kill(work: Work, place: int, seconds: float, finished: bool) -> None:
        for child in carrying_out():
            child.kill()

    faults = Crew(1, kill).carry_out([work(tmp_path, "killed", VERSION, endless)])
    assert (faults["killed"].place, faults["killed"].text) == (1, "killed by SIGKILL, perhaps for want of memory")


def test_a_fault_of_an_earlier_time_is_not_told_again(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "a.log"
    log.parent.mkdir()
    log.write_text("error: of yesterday\n")
    faults = Crew(1, nothing).carry_out([work(tmp_path, "a", ["predict"])])
    assert faults["a"].text == "mosa predict: error: the following arguments are required: task, images"
    assert log.read_text().startswith("error: of yesterday\n$ mosa predict\n")


def nothing(work: Work, place: int, seconds: float, finished: bool) -> None:
    pass


def test_no_process_is_left_when_the_one_that_waits_is_interrupted(tmp_path: Path, endless: list[str]) -> None:
    def interrupted(work: Work, place: int, seconds: float, finished: bool) -> None:
        if work.name == "a":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Crew(2, interrupted).carry_out([work(tmp_path, name, VERSION, endless) for name in ("a", "b", "c")])
    assert not carrying_out()
    assert not [path for path in (tmp_path / "logs").iterdir() if "error: " in path.read_text()]
