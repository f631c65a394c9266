"""The service as a stranger gets it: in a new environment outside of the repository, by a bento or by the extra."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mosa_deploy.bundles.archive import Archive
from tests.support.app import named, scores
from tests.support.installs import copy_sources, new_environment, run
from tests.support.service import Installation, serve
from tests.support.tasks import TaskMaker
from tests.support.walker import ROOT

pytestmark = pytest.mark.slow

LARGEST = 400_000_000
"""Bytes of an environment that serves on CPUs, with pip and with what Python compiled."""


@dataclass(frozen=True)
class Installed:
    """A new environment, and what `bentoml serve` is given there."""

    python: Path
    service: str

    def packages(self) -> dict[str, str]:
        """Version by name."""
        listed = run([self.python, "-m", "pip", "list", "--format", "json"])
        return {each["name"]: each["version"] for each in json.loads(listed)}

    def size(self) -> int:
        """Bytes of all that is installed."""
        (folder,) = (self.python.parent.parent / "lib").glob("python*/site-packages")
        return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def from_bento(folder: Path) -> Installed:
    """What `bentoml build` makes, installed by its own script."""
    home = folder / "built"
    run([sys.executable, "-m", "bentoml", "build"], ROOT, BENTOML_HOME=str(home), BENTOML_DO_NOT_TRACK="True")
    (bento,) = (path.parent for path in home.glob("bentos/mosa-deploy/*/bento.yaml"))
    python = new_environment(folder / "venv")
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    run(["bash", bento / "env" / "python" / "install.sh"], VIRTUAL_ENV=str(folder / "venv"), PATH=path)
    return Installed(python, str(bento))


def from_extra(folder: Path) -> Installed:
    """What `pip install '.[serve-cpu]'` makes of a copy of the repository, which building would litter."""
    python, copy = new_environment(folder / "venv"), folder / "copy"
    copy_sources(copy)
    run([python, "-m", "pip", "install", "--constraint", "constraints.txt", ".[serve-cpu]"], copy)
    shutil.rmtree(copy)
    return Installed(python, "serving.service:Classifier")


@pytest.mark.parametrize("install", [from_bento, from_extra])
def test_it_serves_from_a_new_environment_without_torch(
    install: Callable[[Path], Installed],
    maker: TaskMaker,
    archives: Mapping[str, Archive],
    offline: Mapping[str, np.typing.NDArray[np.float32]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    installed = install(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = Installation(installed.python, installed.service, elsewhere)
    with serve(maker.root, elsewhere, where, threads="1", folded="fields") as server:
        server.wait_until("ready")
        for task in ("birds", "fields", "grains"):
            for i in range(2):
                expected = named(archives[task], offline[task][i])
                answered = scores(server.classify(task, maker.images[i]))
                assert answered == pytest.approx({name: expected[name] for name in answered}, abs=1e-5)
                assert next(iter(answered)) == max(expected, key=expected.__getitem__)
    packages = installed.packages()
    assert not packages.keys() & {"torch", "torchvision", "timm"}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    ours = {"pip", "setuptools", "mosa-deploy"}
    assert {name: version for name, version in packages.items() if name not in ours and pins.get(name) != version} == {}
    print(f"{installed.size() / 1e6:.0f} MB in {len(packages)} packages")
    assert installed.size() < LARGEST
