"""The README's commands and its Python, run as they stand there, but with less work."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.service import Server
from tests.support.walker import ROOT

TEXT = (ROOT / "README.md").read_text()

SETUP = {"python3", "pip"}
JOBS = {"tune", "evaluate", "compare", "export", "latency", "predict", "pack"}
REQUESTS = {"curl", "ask"}

LESS = {
    "tune": "--epochs 1 --passes 1",
    "compare": "--epochs 1",
    "latency": "--seconds 1 --sessions 3",
}
"""Flags that are put behind a command's own, so that it does as much with less work; `make demo` tunes in full."""

PRELUDE = """
from pathlib import Path

names = ("rose", "violet")
files = sorted(Path("flowers").glob("*/*.jpg"))
loader = [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))]
"""
"""What the README's Python takes for granted."""


def blocks(language: str) -> list[str]:
    """The README's blocks of code in a language."""
    return [block.strip() for block in re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)]


LINES = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]


def verb(line: str) -> str:
    """What a command line does: `tune` of `mosa tune ...`, `curl` of `curl ...`."""
    return line.removeprefix("mosa ").split()[0]


def lines_of(verbs: set[str]) -> list[str]:
    """The README's command lines that do so, each once."""
    return [line for line in dict.fromkeys(LINES) if verb(line) in verbs]


def shell(line: str, folder: Path, **environment: str) -> str:
    """Run a command line, and return what it prints."""
    path = f"{sys.prefix}/bin:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it, with images of two kinds of flowers."""
    made, rng = tmp_path_factory.mktemp("reader"), np.random.default_rng(0)
    for label, name in enumerate(("rose", "violet")):
        (made / "flowers" / name).mkdir(parents=True)
        for i in range(15):
            pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            pixels[:, :, 2 * label] += 180
            Image.fromarray(pixels).save(made / "flowers" / name / f"{i}.jpg")
    shutil.copy(made / "flowers" / "rose" / "0.jpg", made / "rose.jpg")
    return made


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict[str, str]:
    """What the commands that need no server print, in the README's order."""
    return {line: shell(f"{line} {LESS.get(verb(line), '')}", folder) for line in lines_of(JOBS)}


@pytest.fixture(scope="module")
def server(folder: Path, printed: dict[str, str]) -> Iterator[Server]:
    """The server as the README starts it, once it is ready."""
    (line,) = lines_of({"serve"})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "MOSA_ADMIN_KEYS": "secret"}
    command = ["bash", "-c", f"exec {line} --host 127.0.0.1 --port {port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    server = Server(process, f"http://127.0.0.1:{port}", folder / "log")
    try:
        server.wait_until("ready")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_every_command_is_run_here() -> None:
    assert [line for line in LINES if verb(line) not in SETUP | JOBS | REQUESTS | {"serve"}] == []


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"`make ([\w-]+)`", TEXT))
    assert targets >= {"demo", "test", "test-slow"}
    for target in targets:
        subprocess.run(["make", target, "-n"], cwd=ROOT, check=True, capture_output=True, timeout=60)


@pytest.mark.slow
def test_commands_work_in_their_order(printed: dict[str, str]) -> None:
    said = {verb(line): text for line, text in printed.items()}
    assert said.keys() == JOBS
    assert "accuracy" in said["evaluate"]
    assert "parity" in said["export"]
    assert "folded" in said["latency"]
    assert "answered 30 of 30 images" in said["predict"]


@pytest.mark.slow
@pytest.mark.usefixtures("printed")
def test_its_python_makes_a_bundle_and_finds_the_rose(folder: Path) -> None:
    first, second = blocks("python")
    asked = 'assert predictor.classify("rose.jpg").label == "rose"'
    setting, use = first.split("\n\n", 1)
    (folder / "readme.py").write_text("\n".join([setting, PRELUDE, use, second, asked]))
    shell("python readme.py", folder)
    assert (folder / "runs" / "mine" / "adapter.json").is_file()


@pytest.mark.slow
def test_the_server_answers_the_requests_in_their_order(server: Server, folder: Path) -> None:
    def ask(line: str) -> str:
        line = line.replace("http://localhost:3000", server.address).replace("curl ", "curl -sS ")
        return shell(line, folder, MOSA_ADDRESS=server.address)

    said = [ask(line) for line in lines_of(REQUESTS)]
    (asked,) = [text for text in said if not text.startswith("{")]
    assert asked.startswith("rose.jpg: flowers: rose")
    answer, uploaded, back = (dict[str, Any](json.loads(text)) for text in said if text.startswith("{"))
    assert answer["predictions"][0]["label"] == "rose"
    assert uploaded["can_roll_back"]
    assert (uploaded["task"], back["task"]) == ("flowers", "flowers")
