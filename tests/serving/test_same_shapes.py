"""SSF and RepAdapter tasks in the service: in banks of their own, or folded at the backbone's own shapes."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from tests.support.app import maker_on, named, running, scores
from tests.support.tasks import TaskMaker

TASKS = {"dyes": "ssf", "dyes.b": "ssf", "lenses": "repadapter", "lenses.b": "repadapter"}


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory, maker: TaskMaker, styled_store: Path) -> TaskMaker:
    """A maker whose store has the tasks of the other one, too."""
    root = Path(shutil.copytree(styled_store, tmp_path_factory.mktemp("styled") / "store"))
    return maker_on(root, maker)


@pytest.fixture(scope="module")
def made(styled: TaskMaker) -> Mapping[str, Archive]:
    """Two tasks of each style, of different bottlenecks, in the maker's store."""
    found = {name: styled.make(name, seed, 4 + 2 * seed, method) for seed, (name, method) in enumerate(TASKS.items())}
    for archive in found.values():
        styled.store(archive)
    return found


@pytest.fixture(scope="module")
def client(styled: TaskMaker, made: Mapping[str, Archive]) -> Iterator[TestClient]:
    """The service with all of them, which nobody may change."""
    with running(styled.root, folded="dyes.b,lenses.b") as client:
        yield client


@pytest.mark.parametrize("name", TASKS)
def test_a_task_answers_as_its_folded_graph_alone_in_the_lane_that_was_chosen(
    client: TestClient, styled: TaskMaker, made: Mapping[str, Archive], name: str
) -> None:
    (wanted,) = styled.offline(made[name], [styled.images[5]])
    answer = client.post("/classify", files={"image": styled.images[5]}, data={"task": name, "top_k": "99"})
    assert scores(answer) == pytest.approx(named(made[name], wanted), abs=1e-5)
    lane = "folded" if name.endswith(".b") else "shared"
    assert client.get(f"/v1/tasks/{name}").json()["lane"] == lane


def test_an_image_is_answered_for_tasks_of_every_style_at_once(client: TestClient, styled: TaskMaker) -> None:
    tasks = ["birds", "grains", "dyes", "lenses"]
    answer = client.post("/classify", files={"image": styled.images[5]}, data={"tasks": ",".join(tasks)})
    tops = [each["predictions"][0]["label"] for each in answer.json()["results"]]
    assert tops == ["class-5", "class-9", "class-5", "class-7"]
