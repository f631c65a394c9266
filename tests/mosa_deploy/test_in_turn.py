import json
import os
import subprocess
import sys

from tests.support.waiting import wait_for


def in_turn(*lines: list[str], parent: int | None = None) -> "subprocess.Popen[str]":
    """Start command lines of `mosa` in one process."""
    command = [sys.executable, "-m", "mosa_deploy.in_turn", json.dumps(lines), str(parent or os.getpid())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_it_ends_with_the_first_command_that_fails_and_tells_of_each() -> None:
    with in_turn(["--version"], ["tunee"], ["--version"]) as process:
        told, printed = process.communicate(timeout=60)
    assert [json.loads(line)["code"] for line in told.splitlines()] == [0, 2]
    assert process.returncode == 2
    lines = printed.splitlines()
    assert [line for line in lines if line.startswith("$ ")] == ["$ mosa --version", "$ mosa tunee"]
    assert lines[-1].startswith("error: unknown command 'tunee'")


def test_it_ends_with_its_parent() -> None:
    # No process of the test's is the parent that this one is told of, as if that had died.
    with in_turn(["serve", "--help"], ["--version"], parent=1) as process:
        wait_for(lambda: process.poll() is not None, 60)
        process.communicate()
    assert process.returncode == 1
