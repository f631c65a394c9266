"""Run the commands of the README and the docs as a reader would, but with less work."""

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
from PIL import Image

from mosa_deploy.backbones.names import EMBEDDED
from tests.support.service import Server

JOBS = {"tune", "evaluate", "compare", "export", "latency", "predict", "pack", "convert"}
"""Commands of `mosa` that finish by themselves and need no server."""

LESS = {
    "tune": "--epochs 1 --passes 1",
    "compare": "--epochs 1",
    "latency": "--seconds 1 --sessions 3",
}
"""Flags that are appended to a command so that it does less work. `make demo` tunes in full."""


OWN_IMAGES = {"tune": "--task folder", "compare": "--tasks flowers"}
"""Command -> what it has if it is about images of the reader's own, whose backbone is on timm's hub."""


def less(line: str) -> str:
    """The flags that are appended to a command line: less work, and the backbone in the package instead of a hub's."""
    own = OWN_IMAGES.get(verb(line), "none") in line and "--backbone " not in line
    return f"{LESS.get(verb(line), '')}{f' --backbone {EMBEDDED}' if own else ''}"


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [block.strip() for block in found]


def command_lines(page: Path, language: str = "sh") -> list[str]:
    """The command lines of a page, without their comments."""
    text = "\n".join(blocks(page, language)).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.strip()]


def verb(line: str) -> str:
    """The verb of a command line: `tune` for `mosa tune ...`, `curl` for `curl ...`."""
    return line.removeprefix("mosa ").split()[0]


def shell(line: str, folder: Path, **environment: str) -> str:
    """Run a command line and return its output."""
    done = subprocess.run(
        ["bash", "-c", f"{line} {less(line)}"],
        cwd=folder,
        env={**_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def write_flowers(folder: Path) -> None:
    """Write images of two kinds of flowers below `flowers/`, and `rose.jpg` and a table `labels.csv` beside it."""
    rng = np.random.default_rng(0)
    rows = [f"{name}/{i}.jpg,{name}" for name in ("rose", "violet") for i in range(15)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    for label, name in enumerate(("rose", "violet")):
        (folder / "flowers" / name).mkdir(parents=True)
        for i in range(15):
            pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            pixels[:, :, 2 * label] += 180
            Image.fromarray(pixels).save(folder / "flowers" / name / f"{i}.jpg")
    shutil.copy(folder / "flowers" / "rose" / "0.jpg", folder / "rose.jpg")


def write_scenes(folder: Path) -> None:
    """Write images with bands of up to three colours below `scenes/`, their table in it, and `scene.jpg` beside it."""
    rng = np.random.default_rng(0)
    (folder / "scenes").mkdir(parents=True)
    rows = ["file,labels"]
    for i in range(60):
        pixels = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
        present = [k for k in range(3) if i >> k & 1]
        for k in present:
            row = 12 * k + int(rng.integers(0, 6))
            pixels[row : row + 8, :, k] += 180
        Image.fromarray(pixels).save(folder / "scenes" / f"{i}.png")
        rows.append(f"{i}.png,{'|'.join(('red', 'green', 'blue')[k] for k in present)}")
    (folder / "scenes" / "labels.csv").write_text("\n".join(rows) + "\n")
    Image.open(folder / "scenes" / "3.png").save(folder / "scene.jpg")


@contextmanager
def serving(line: str, folder: Path, **environment: str) -> Iterator[Server]:
    """Start the server as a page does, on a free port; yields it when it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["bash", "-c", f"exec {line} --host 127.0.0.1 --port {port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env={**_environment(), **environment}, stdout=log, stderr=log)
    server = Server(process, f"http://127.0.0.1:{port}", folder / "log")
    try:
        server.wait_until("ready")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def ask(line: str, server: Server, folder: Path) -> str:
    """Send a request of a page to a server and return the answer."""
    return shell(to_server(line, server.address), folder, MOSA_ADDRESS=server.address)


def to_server(line: str, address: str) -> str:
    """A command line of a page that asks the server at this address."""
    return re.sub(r"(http://)?localhost:3000", address, line).replace("curl ", "curl -sS ")


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
