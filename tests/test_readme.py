"""The README's commands and its Python, run as they stand there, but with less work."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import JOBS, ask, blocks, command_lines, serving, shell, verb, write_flowers
from tests.support.service import Server
from tests.support.walker import ROOT

README = ROOT / "README.md"
LINES = command_lines(README)

SETUP = {"python3", "pip"}
REQUESTS = {"curl", "ask"}

PRELUDE = """
from pathlib import Path

names = ("rose", "violet")
files = sorted(Path("flowers").glob("*/*.jpg"))
loader = [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))]
"""
"""What the README's Python takes for granted."""


def lines_of(verbs: set[str]) -> list[str]:
    """The README's command lines that do so, each once."""
    return [line for line in dict.fromkeys(LINES) if verb(line) in verbs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it, with images of two kinds of flowers."""
    made = tmp_path_factory.mktemp("reader")
    write_flowers(made)
    return made


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict[str, str]:
    """What the commands that need no server print, in the README's order."""
    return {line: shell(line, folder) for line in lines_of(JOBS)}


@pytest.fixture(scope="module")
def server(folder: Path, printed: dict[str, str]) -> Iterator[Server]:
    """The server as the README starts it, once it is ready."""
    (line,) = lines_of({"serve"})
    with serving(line, folder, MOSA_ADMIN_KEYS="secret") as server:
        yield server


def test_every_command_is_run_here() -> None:
    assert [line for line in LINES if verb(line) not in SETUP | JOBS | REQUESTS | {"serve"}] == []


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"`make ([\w-]+)`", README.read_text()))
    assert targets >= {"demo", "test", "test-slow"}
    for target in targets:
        subprocess.run(["make", target, "-n"], cwd=ROOT, check=True, capture_output=True, timeout=60)


@pytest.mark.slow
def test_commands_work_in_their_order(printed: dict[str, str]) -> None:
    said = {verb(line): text for line, text in printed.items()}
    assert said.keys() == JOBS - {"convert"}
    assert "accuracy" in said["evaluate"]
    assert "parity" in said["export"]
    assert "folded" in said["latency"]
    assert "answered 30 of 30 images" in said["predict"]


@pytest.mark.slow
@pytest.mark.usefixtures("printed")
def test_its_python_makes_a_bundle_and_finds_the_rose(folder: Path) -> None:
    first, second = blocks(README, "python")
    asked = 'assert predictor.classify("rose.jpg").label == "rose"'
    setting, use = first.split("\n\n", 1)
    (folder / "readme.py").write_text("\n".join([setting, PRELUDE, use, second, asked]))
    shell("python readme.py", folder)
    assert (folder / "runs" / "mine" / "adapter.json").is_file()


@pytest.mark.slow
def test_the_server_answers_the_requests_in_their_order(server: Server, folder: Path) -> None:
    said = [ask(line, server, folder) for line in lines_of(REQUESTS)]
    (asked,) = [text for text in said if not text.startswith("{")]
    assert asked.startswith("rose.jpg: flowers: rose")
    answer, uploaded, back = (dict[str, Any](json.loads(text)) for text in said if text.startswith("{"))
    assert answer["predictions"][0]["label"] == "rose"
    assert uploaded["can_roll_back"]
    assert (uploaded["task"], back["task"]) == ("flowers", "flowers")
