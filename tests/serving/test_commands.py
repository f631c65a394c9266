"""`mosa serve`, up to the moment in which BentoML takes over; the README's test starts it for good."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError, StoreError
from serving.commands import serve
from tests.support.tasks import TaskMaker


class StartedError(Exception):
    """The server's command took this process's place."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line that would take the place of this process."""
    command: list[str] = []

    def execute(_: str, line: list[str]) -> None:
        command.extend(line)
        raise StartedError

    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.setenv("MOSA_ARTIFACTS", "elsewhere")
    return command


@pytest.fixture
def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_it_hands_store_host_and_port_to_the_server(maker: TaskMaker, started: list[str], free_port: str) -> None:
    with pytest.raises(StartedError):
        serve(["--artifacts", str(maker.root), "--host", "127.0.0.1", "--port", free_port], "mosa serve")
    assert os.environ["MOSA_ARTIFACTS"] == str(maker.root)
    assert started[1:] == [
        *("-m", "bentoml", "serve", "serving.service:Classifier"),
        *("--host", "127.0.0.1", "--port", free_port),
    ]


def test_the_store_is_that_of_the_environment_if_none_is_given(
    maker: TaskMaker, started: list[str], free_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSA_ARTIFACTS", str(maker.root))
    with pytest.raises(StartedError):
        serve(["--port", free_port], "mosa serve")
    assert started


def test_an_empty_store_is_one_line_with_the_way_out(tmp_path: Path, started: list[str], free_port: str) -> None:
    with pytest.raises(
        StoreError, match=rf"^no task in {tmp_path}/tasks: write one with `mosa export --out {tmp_path}`$"
    ):
        serve(["--artifacts", str(tmp_path), "--port", free_port], "mosa serve")
    assert not started


def test_an_empty_store_is_served_where_tasks_may_be_added(
    tmp_path: Path, started: list[str], free_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSA_ADMIN_KEYS", "secret")
    with pytest.raises(StartedError):
        serve(["--artifacts", str(tmp_path), "--port", free_port], "mosa serve")


def test_a_taken_port_is_one_line_with_the_way_out(maker: TaskMaker, started: list[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^127\.0\.0\.1:{port}: something listens there already: stop it, or"):
            serve(["--artifacts", str(maker.root), "--host", "127.0.0.1", "--port", str(port)], "mosa serve")
    assert not started


def test_a_port_that_cannot_be_is_named(maker: TaskMaker, started: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--port 70000: 1 to 65535$"):
        serve(["--artifacts", str(maker.root), "--port", "70000"], "mosa serve")
    assert not started


def test_a_host_that_is_not_here_is_named(maker: TaskMaker, started: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^192\.0\.2\.1:3999: .*choose another --host or --port$"):
        serve(["--artifacts", str(maker.root), "--host", "192.0.2.1", "--port", "3999"], "mosa serve")
    assert not started


def test_a_setting_that_cannot_be_read_is_named(
    maker: TaskMaker, started: list[str], free_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSA_MAX_BATCH", "many")
    with pytest.raises(ConfigError, match="MOSA_MAX_BATCH=many"):
        serve(["--artifacts", str(maker.root), "--port", free_port], "mosa serve")
    assert not started


def test_an_unknown_flag_ends_in_one_line(tmp_path: Path) -> None:
    command = [str(Path(sys.prefix, "bin", "mosa")), "serve", "--artefacts", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "mosa serve: error: unrecognized arguments: --artefacts x"
