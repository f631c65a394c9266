"""Processes that carry out command lines of `mosa`, several at a time, and what becomes of those that are lost."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.images import jpeg
from training.fleet.crew import ATTEMPTS, Crew, Running, Work
from training.fleet.process import COMMAND, End, Line, Process

VERSION, WRONG = ["--version"], ["tunee"]


def work(folder: Path, name: str, *lines: list[str]) -> Work:
    return Work(name, lambda: lines, folder / "logs" / f"{name}.log")


def carrying_out() -> list[psutil.Process]:
    """The processes that carry out command lines. Others, such as joblib's, serve the tests that come later."""
    found = (child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE)
    return [child for child in found if COMMAND[-1] in child.cmdline()]


def test_a_task_that_fails_stops_no_other_and_its_fault_is_the_error_of_its_log(tmp_path: Path) -> None:
    ended: list[tuple[str, Line, bool]] = []

    def told(work: Work, end: End) -> None:
        assert end.seconds is not None
        assert end.seconds >= 0
        ended.append((work.name, end.line, not end.fault))

    works = [work(tmp_path, "bad", VERSION, WRONG, VERSION), work(tmp_path, "good", VERSION, VERSION)]
    faults = Crew(2).carry_out(works, told)
    assert sorted(ended) == [("bad", VERSION, True), ("bad", WRONG, False), *2 * [("good", VERSION, True)]]
    assert faults.keys() == {"bad"}
    assert faults["bad"].line == WRONG
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
    def kill(work: Work, end: End) -> None:
        for child in carrying_out():
            child.kill()

    faults = Crew(1).carry_out([work(tmp_path, "killed", VERSION, endless)], kill)
    assert faults == {"killed": (endless, "killed by SIGKILL, perhaps for want of memory")}


def test_a_fault_of_an_earlier_time_is_not_told_again(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "a.log"
    log.parent.mkdir()
    log.write_text("error: of yesterday\n")
    faults = Crew(1).carry_out([work(tmp_path, "a", ["predict"])], nothing)
    assert faults["a"].text == "mosa predict: error: the following arguments are required: task, images"
    assert log.read_text().startswith("error: of yesterday\n$ mosa predict\n")


def nothing(work: Work, end: End) -> None:
    pass


def test_no_process_is_left_when_the_one_that_waits_is_interrupted(tmp_path: Path, endless: list[str]) -> None:
    def interrupted(work: Work, end: End) -> None:
        if work.name == "a":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Crew(2).carry_out([work(tmp_path, name, VERSION, endless) for name in ("a", "b", "c")], interrupted)
    assert not carrying_out()
    assert not [path for path in (tmp_path / "logs").iterdir() if "error: " in path.read_text()]


@contextmanager
def losing(lines: Sequence[Line], log: Path) -> Iterator[Running]:
    """A place that is lost whenever a second command line begins."""
    with Process(lines[:1], log) as process:
        yield Losing(process, lines[1:])


class Losing:
    def __init__(self, process: Process, others: Sequence[Line]) -> None:
        self.process, self.others = process, others

    def ends(self) -> Iterator[End]:
        yield from self.process.ends()
        yield from (End(line, None, "its node was lost", lost=True) for line in self.others[:1])

    def kill(self) -> None:
        self.process.kill()


def test_a_work_whose_place_is_lost_goes_on_with_what_is_left_of_it(tmp_path: Path) -> None:
    waiting, ended = [["--version"], ["--help"], ["--version"]], list[End]()

    def told(work: Work, end: End) -> None:
        ended.append(end)
        if not end.lost:
            assert waiting.pop(0) == end.line

    assert not Crew(1, losing).carry_out([Work("a", lambda: list(waiting), tmp_path / "log")], told)
    assert not waiting
    assert [(end.line[0], end.lost) for end in ended] == [
        ("--version", False),
        ("--help", True),
        ("--help", False),
        ("--version", True),
        ("--version", False),
    ]


def test_a_work_whose_place_is_lost_again_and_again_is_given_up(tmp_path: Path) -> None:
    begun = work(tmp_path, "a", VERSION, WRONG)
    assert Crew(1, losing).carry_out([begun], nothing) == {"a": (WRONG, "its node was lost")}
    assert begun.log.read_text().count("$ mosa --version") == ATTEMPTS
