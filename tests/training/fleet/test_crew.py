"""Processes that carry out command lines of `mosa`, several at a time, and what becomes of those that are lost."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.images import jpeg
from tests.support.waiting import wait_for
from training.fleet.crew import ATTEMPTS, Crew, Running, Start, Work
from training.fleet.forks import SERVER, Fork, ForkServer
from training.fleet.process import COMMAND, End, Line, Process

VERSION, WRONG = ["--version"], ["tunee"]


def work(folder: Path, name: str, *lines: list[str]) -> Work:
    return Work(name, lambda: lines, folder / "logs" / f"{name}.log")


@pytest.fixture(params=["processes", "forks"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Begins to carry out command lines, in either way."""
    with ForkServer(modules=()) as server:
        yield server.start if request.param == "forks" else Process


def running(parent: psutil.Process, word: str = "") -> list[psutil.Process]:
    """The children of a process that have a word in their command line. Any may end meanwhile."""
    found: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        for child in parent.children():
            with suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE and (not word or word in child.cmdline()):
                    found.append(child)
    return found


def servers() -> list[psutil.Process]:
    return running(psutil.Process(), SERVER[-1])


def carrying_out() -> list[psutil.Process]:
    """The processes that carry out command lines. Others, such as joblib's, serve the tests that come later."""
    forks = [fork for server in servers() for guard in running(server) for fork in running(guard)]
    return [*running(psutil.Process(), COMMAND[-1]), *forks]


def test_a_task_that_fails_stops_no_other_and_its_fault_is_the_error_of_its_log(tmp_path: Path, start: Start) -> None:
    ended: list[tuple[str, Line, bool]] = []

    def told(work: Work, end: End) -> None:
        assert end.seconds is not None
        assert end.seconds >= 0
        ended.append((work.name, end.line, not end.fault))

    works = [work(tmp_path, "bad", VERSION, WRONG, VERSION), work(tmp_path, "good", VERSION, VERSION)]
    faults = Crew(2, start).carry_out(works, told)
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
    tmp_path: Path, endless: list[str], start: Start
) -> None:
    def kill(work: Work, end: End) -> None:
        for child in carrying_out():
            child.kill()

    faults = Crew(1, start).carry_out([work(tmp_path, "killed", VERSION, endless)], kill)
    assert faults == {"killed": (endless, "killed by SIGKILL, perhaps for want of memory")}


def test_a_fault_of_an_earlier_time_is_not_told_again(tmp_path: Path, start: Start) -> None:
    log = tmp_path / "logs" / "a.log"
    log.parent.mkdir()
    log.write_text("error: of yesterday\n")
    faults = Crew(1, start).carry_out([work(tmp_path, "a", ["predict"])], nothing)
    assert faults["a"].text == "mosa predict: error: the following arguments are required: task, images"
    assert log.read_text().startswith("error: of yesterday\n$ mosa predict\n")


def nothing(work: Work, end: End) -> None:
    pass


def test_no_process_is_left_when_the_one_that_waits_is_interrupted(
    tmp_path: Path, endless: list[str], start: Start
) -> None:
    def interrupted(work: Work, end: End) -> None:
        if work.name == "a":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Crew(2, start).carry_out([work(tmp_path, name, VERSION, endless) for name in ("a", "b", "c")], interrupted)
    assert not carrying_out()
    # A guard ends once it has seen that its fork has.
    wait_for(lambda: not [guard for server in servers() for guard in running(server)], 10)
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


def test_forks_go_on_without_their_server_and_others_start_anew(tmp_path: Path) -> None:
    def kill(work: Work, end: End) -> None:
        for process in servers():
            process.kill()
            process.wait()

    with ForkServer(modules=()) as server:
        works = [work(tmp_path, name, VERSION, ["--help"]) for name in ("a", "b")]
        with server.start([VERSION], tmp_path / "first") as first:
            assert isinstance(first, Fork)
            assert [end.fault for end in first.ends()] == [""]
        assert not Crew(1, server.start).carry_out(works, kill)
        with server.start([VERSION], tmp_path / "last") as last:
            assert isinstance(last, Process)
    assert all((tmp_path / "logs" / f"{name}.log").read_text().count("$ mosa --") == 2 for name in ("a", "b"))


def test_a_work_that_a_server_took_to_its_end_begins_again(tmp_path: Path) -> None:
    ended = list[End]()
    with ForkServer(modules=("torch",)) as server:

        def start(lines: Sequence[Line], log: Path) -> AbstractContextManager[Running]:
            begun = server.start(lines, log)
            for process in servers():  # It is importing still.
                process.kill()
            return begun

        assert not Crew(1, start).carry_out([work(tmp_path, "a", VERSION)], lambda _, end: ended.append(end))
    assert [(end.line, end.lost) for end in ended] == [(VERSION, True), (VERSION, False)]


@pytest.mark.slow
def test_a_fork_computes_what_a_process_does_and_its_server_nothing(tmp_path: Path) -> None:
    tune = ["tune", "--task", "digits", "--shots", "10", "--epochs", "1", "--bottleneck", "4", "--device", "cpu"]
    with ForkServer() as server:
        for name, start in {"first": server.start, "second": server.start, "process": Process}.items():
            line = [*tune, "--seed", "1" if name == "first" else "2", "--out", str(tmp_path / name)]
            assert not Crew(1, start).carry_out([work(tmp_path, f"{name}-work", line)], nothing)
        (process,) = servers()
        loaded = {Path(each.path).name for each in process.memory_maps()}
        assert process.num_threads() == 1  # A fork would have no other one.
        assert any(name.startswith("libtorch") for name in loaded)
        assert not any("onnxruntime" in name for name in loaded)
    bundles = {name: (tmp_path / name / "adapter.safetensors").read_bytes() for name in ("first", "second", "process")}
    assert bundles["second"] == bundles["process"] != bundles["first"]
