"""Tasks of a Swin in both lanes of the service."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mosa_deploy.bundles.archive import Archive
from tests.support import swin
from tests.support.app import named, running, scores
from tests.support.tasks import TaskMaker, Traced

METHODS = {"leaves": ("mosa", 3), "bark": ("mosa", 6), "moss": ("linear", 4)}


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory, traced_store: Traced) -> TaskMaker:
    """Makes tasks on a Swin."""
    root = shutil.copytree(traced_store(swin.NAME), tmp_path_factory.mktemp("made") / "store")
    return TaskMaker(Path(root), swin.NAME)


@pytest.fixture(scope="module")
def archives(maker: TaskMaker) -> Mapping[str, Archive]:
    """Tasks with two different bottlenecks, and one linear task."""
    made = {
        name: maker.make(name, seed, bottleneck, method)
        for seed, (name, (method, bottleneck)) in enumerate(METHODS.items())
    }
    for archive in made.values():
        maker.store(archive)
    return made


@pytest.mark.parametrize("lane", ["shared", "folded"])
def test_both_lanes_give_every_task_its_own_probabilities(
    maker: TaskMaker, archives: Mapping[str, Archive], lane: str
) -> None:
    image = maker.images[5]
    with running(maker.root, folded="*" if lane == "folded" else "") as client:
        for name, archive in archives.items():
            answer = client.post("/classify", files={"image": image}, data={"task": name, "top_k": "32"})
            assert client.get(f"/v1/tasks/{name}").json()["lane"] == lane
            (wanted,) = maker.offline(archive, [image])
            assert scores(answer) == pytest.approx(named(archive, wanted), abs=1e-5)
            assert np.ptp(wanted) > 0.1
