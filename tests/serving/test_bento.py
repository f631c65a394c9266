"""The service as a stranger gets it: in a new environment outside of the repository, by a bento or by the extra."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.app import Reference, named, scores
from tests.support.installs import copy_sources, new_environment, run
from tests.support.service import Installation, serve
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
        """Version by normalised name, since a package may call itself `fastapi_offline`."""
        listed = run([self.python, "-m", "pip", "list", "--format", "json"])
        return {canonicalize_name(each["name"]): each["version"] for each in json.loads(listed)}

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


@pytest.fixture(scope="module", params=[from_bento, from_extra])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """The service in a new environment, which sees nothing of the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        yield request.param(tmp_path_factory.mktemp("installed"))


def test_it_serves_from_a_new_environment(installed: Installed, reference: Reference, tmp_path: Path) -> None:
    where = Installation(installed.python, installed.service, tmp_path)
    with serve(reference.maker.root, tmp_path, where, threads="1", folded="fields") as server:
        server.wait_until("ready")
        for task in ("birds", "fields", "grains"):
            for i in range(2):
                expected = named(reference.archives[task], reference.offline[task][i])
                answered = scores(server.classify(task, reference.maker.images[i]))
                assert answered == pytest.approx({name: expected[name] for name in answered}, abs=1e-5)
                assert next(iter(answered)) == max(expected, key=expected.__getitem__)


def test_it_has_no_torch_and_the_pinned_versions_of_the_rest(installed: Installed) -> None:
    packages = installed.packages()
    assert not packages.keys() & {"torch", "torchvision", "timm"}
    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pins: dict[str, str] = {canonicalize_name(name): version for name, version in lines}
    ours = {"pip", "setuptools", "mosa-deploy"}
    assert {name: version for name, version in packages.items() if name not in ours and pins.get(name) != version} == {}


def test_it_is_small(installed: Installed) -> None:
    assert installed.size() < LARGEST
