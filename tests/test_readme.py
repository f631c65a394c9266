"""The README's commands, run as they stand there."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from mosa_deploy.backbones.load import Weights, load_backbone
from tests.support.peft_models import CLASSES, NAME, of_transformers

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = [block.strip() for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)]
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]

SHORTER = {
    "training.tune ": "training.tune --epochs 1 ",
    "training.compare ": "training.compare --epochs 1 ",
    "--seconds 5": "--seconds 1",
    "--backbone vit_base_patch16_224 ": f"--backbone {NAME} ",
}
"""What is run in place of what the README says; `make demo` tunes in full."""


def shell(lines: list[str], folder: Path, port: int) -> str:
    """Run command lines in one shell, which stops at the first that fails; returns what they print."""
    script = "\n".join(["set -e", ". .venv/bin/activate", *lines]).replace("localhost:3000", f"127.0.0.1:{port}")
    for long, short in SHORTER.items():
        script = script.replace(long, short)
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def chosen(*starts: str) -> list[str]:
    """The README's command lines that start so, each once."""
    return [line for line in dict.fromkeys(LINES) if line.startswith(starts)]


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


def test_make_targets_are_there() -> None:
    targets = chosen("make ")
    assert {"make demo", "make test"} <= set(targets)
    for line in targets:
        subprocess.run([*line.split(), "-n"], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_every_command_is_run_here() -> None:
    known = (
        "make ",
        ". .venv",
        "python -m training.",
        "python -m export",
        "python -m serving.ask",
        "MOSA_ARTIFACTS=",
        "curl ",
    )
    assert [line for line in LINES if not line.startswith(known)] == []


@pytest.mark.slow
def test_commands_work_in_their_order(newcomer: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    printed = shell(chosen("python -m training.", "python -m export"), newcomer, port)
    assert "parity" in printed
    assert printed.count("accuracy") >= 3
    serve = chosen("MOSA_ARTIFACTS=")
    assert len(serve) == 1
    environment = {**os.environ, "BENTOML_PORT": str(port), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    with (newcomer / "log").open("w") as log:
        command = ["bash", "-c", f"export {serve[0].replace(' bentoml', '; exec bentoml')}"]
        server = subprocess.Popen(command, cwd=newcomer, env=environment, stdout=log, stderr=log)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/readyz")
        answers = [json.loads(shell([f"{line} -sS"], newcomer, port)) for line in chosen("curl ")]
        (asked,) = chosen("python -m serving.ask")
        said = shell([f"MOSA_ADDRESS=http://localhost:3000 {asked}"], newcomer, port)
    finally:
        server.terminate()
        server.wait(timeout=60)
    assert {answer["task"] for answer in answers if "task" in answer} == {"digits", "flowers"}
    assert said.startswith("image.png: digits: ")
    flower = next(answer for answer in answers if answer.get("task") == "flowers")
    assert flower["predictions"][0]["label"] == "rose"


def wait_until_ready(url: str) -> None:
    """Ask until the service answers."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"{url} does not answer")
