"""The README's commands, run as they stand there."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mosa_deploy.backbones.load import Weights, load_backbone
from tests.support.peft_models import CLASSES, NAME, of_transformers
from tests.support.service import Server
from tests.support.walker import ROOT

BLOCKS = [block.strip() for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)]
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]

SETUP = {"make", "."}
JOBS = {"tune", "evaluate", "compare", "export", "convert", "latency"}
SERVE = {"serve"}
QUESTIONS = {"curl", "ask"}
KNOWN = SETUP | JOBS | SERVE | QUESTIONS

LESS = {
    "tune": "--epochs 1 --passes 1",
    "compare": "--epochs 1",
    "latency": "--seconds 1 --sessions 3",
}
"""Flags that are put behind a command's own, so that it does as much with less work; `make demo` tunes in full."""


def verb(line: str) -> str:
    """What a command line does: `tune` of `python -m training.tune ...`, `curl` of `curl ...`."""
    found = re.match(r"(?:\w+=\S+ )*(?:python -m (?:\w+\.)*|mosa |bentoml )?(\S+)", line)
    assert found is not None, line
    return found[1]


def lines_of(verbs: set[str]) -> list[str]:
    """The README's command lines that do so, each once."""
    return [line for line in dict.fromkeys(LINES) if verb(line) in verbs]


def lighter(line: str) -> str:
    """The command line with less work, on a backbone that needs no hub."""
    line = line.replace("--backbone vit_base_patch16_224 ", f"--backbone {NAME} ")
    return f"{line} {LESS.get(verb(line), '')}"


def shell(lines: list[str], folder: Path, port: int) -> str:
    """Run command lines in one shell, which stops at the first that fails; returns what they print."""
    script = "\n".join(["set -e", ". .venv/bin/activate", *lines]).replace("localhost:3000", f"127.0.0.1:{port}")
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def newcomer(tmp_path: Path) -> Path:
    """A folder as a reader has it: the environment, the bentofile, images of two kinds of flowers, an adapter."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copy(ROOT / "bentofile.yaml", tmp_path)
    rng = np.random.default_rng(0)
    for label, name in enumerate(("rose", "violet")):
        folder = tmp_path / "flowers" / name
        folder.mkdir(parents=True)
        for i in range(15):
            pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            pixels[:, :, 2 * label] += 180
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
    of_transformers(tmp_path / "adapter", tmp_path / "vit", target_modules=["q_proj", "v_proj"])
    tuned = load_backbone(NAME, Weights("file", tmp_path / "vit" / "model.safetensors"), CLASSES)
    torch.save(tuned.state_dict(), tmp_path / "tuned.pth")
    shutil.copy(tmp_path / "flowers" / "rose" / "0.jpg", tmp_path / "rose.jpg")
    shutil.copy(tmp_path / "flowers" / "rose" / "0.jpg", tmp_path / "image.png")
    return tmp_path


@contextmanager
def serving(line: str, folder: Path, port: int) -> Iterator[Server]:
    """The server that a command line starts, once it is ready."""
    environment = {**os.environ, "BENTOML_PORT": str(port), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    with (folder / "log").open("wb") as log:
        command = ["bash", "-c", f"exec env {line}"]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    server = Server(process, f"http://127.0.0.1:{port}", folder / "log")
    try:
        server.wait_until("ready")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_make_targets_are_there() -> None:
    targets = lines_of({"make"})
    assert {"make demo", "make test"} <= set(targets)
    for line in targets:
        subprocess.run([*line.split(), "-n"], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_every_command_is_run_here() -> None:
    assert [line for line in LINES if verb(line) not in KNOWN] == []


@pytest.mark.slow
def test_commands_work_in_their_order(newcomer: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    printed = shell([lighter(line) for line in lines_of(JOBS)], newcomer, port)
    assert "parity" in printed
    assert printed.count("accuracy") >= 3
    (serve,) = lines_of(SERVE)
    with serving(serve, newcomer, port):
        answers = [json.loads(shell([f"{line} -sS"], newcomer, port)) for line in lines_of({"curl"})]
        (asked,) = lines_of({"ask"})
        said = shell([f"MOSA_ADDRESS=http://localhost:3000 {asked}"], newcomer, port)
    assert {answer["task"] for answer in answers if "task" in answer} == {"digits", "flowers"}
    assert said.startswith("image.png: digits: ")
    flower = next(answer for answer in answers if answer.get("task") == "flowers")
    assert flower["predictions"][0]["label"] == "rose"
