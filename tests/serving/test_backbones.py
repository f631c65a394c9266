"""Two backbones side by side in one service, and a task that moves from one to the other."""

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.preprocess import Array
from tests.support.app import changing, named, scores
from tests.support.tasks import TaskMaker, Traced

SECOND = "test_vit"
"""A small ViT of timm's, of 160 px: another image size, depth and width than the embedded one's."""

Made = Mapping[str, tuple[Archive, Array]]
"""A task's bundle, and its reference's probabilities (n, K) of the makers' images."""


@pytest.fixture(scope="module")
def second(maker: TaskMaker, traced_store: Traced, tmp_path_factory: pytest.TempPathFactory) -> TaskMaker:
    """Makes tasks on the second backbone, in a store that holds the first one's tasks too."""
    root = Path(shutil.copytree(maker.root, tmp_path_factory.mktemp("both") / "store"))
    shutil.copytree(traced_store(SECOND), root, dirs_exist_ok=True)
    return TaskMaker(root, SECOND)


@pytest.fixture(scope="module")
def made(second: TaskMaker, archives: Mapping[str, Archive], offline: Mapping[str, Array]) -> Made:
    """Tasks of both backbones."""
    own = {"ants": second.make("ants", 5), "bees": second.make("bees", 6, method="linear")}
    for archive in own.values():
        second.store(archive)
    first = {name: (archives[name], offline[name]) for name in ("birds", "fields")}
    return first | {name: (archive, second.offline(archive)) for name, archive in own.items()}


@pytest.fixture
def both(second: TaskMaker, made: Made, tmp_path: Path) -> Iterator[TestClient]:
    """The service on a copy of that store."""
    with changing(shutil.copytree(second.root, tmp_path / "store")) as client:
        yield client


def backbone(client: TestClient, task: str) -> str:
    found: str = client.get(f"/v1/tasks/{task}").json()["backbone"]
    return found


def test_each_task_answers_by_its_own_backbone_while_others_ask(both: TestClient, maker: TaskMaker, made: Made) -> None:
    asked = [(i, task) for i in range(8) for task in made]

    def ask(one: tuple[int, str]) -> dict[str, float]:
        i, task = one
        return scores(both.post("/classify", files={"image": maker.images[i]}, data={"task": task, "top_k": "99"}))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, asked))
    for (i, task), answer in zip(asked, answers, strict=True):
        archive, rows = made[task]
        assert answer == pytest.approx(named(archive, rows[i]), abs=1e-5)
    assert backbone(both, "birds") == backbone(both, "fields") != backbone(both, "ants") == backbone(both, "bees")


def test_one_request_may_ask_tasks_of_both(both: TestClient, maker: TaskMaker, made: Made) -> None:
    files = [("image", (f"{i}.png", maker.images[i])) for i in range(3)]
    results = both.post("/classify", files=files, data={"tasks": ",".join(made), "top_k": "99"}).json()["results"]
    wanted = [(i, task) for i in range(3) for task in made]
    for (i, task), result in zip(wanted, results, strict=True):
        archive, rows = made[task]
        given = {each["label"]: each["score"] for each in result["predictions"]}
        assert given == pytest.approx(named(archive, rows[i]), abs=1e-5)


def test_a_task_moves_to_the_other_backbone_and_back(
    both: TestClient, maker: TaskMaker, second: TaskMaker, made: Made
) -> None:
    old, (moved, rows) = made["birds"], (archive := second.make("birds", 9), second.offline(archive))

    def check(archive: Archive, rows: Array) -> None:
        assert backbone(both, "birds") == archive.bundle().record.backbone.folder
        for i in (0, 5):
            answer = both.post("/classify", files={"image": maker.images[i]}, data={"task": "birds", "top_k": "99"})
            assert answer.json()["bundle"] == archive.bundle().digest
            assert scores(answer) == pytest.approx(named(archive, rows[i]), abs=1e-5)

    check(*old)
    assert both.put("/v1/tasks/birds", content=moved.pack()).status_code == 200
    check(moved, rows)
    assert both.post("/v1/tasks/birds/rollback").status_code == 200
    check(*old)
    both.post("/v1/tasks/birds/rollback")
    check(moved, rows)


def test_of_two_plain_backbones_one_has_to_be_named_for_their_features(
    both: TestClient, maker: TaskMaker, second: TaskMaker
) -> None:
    def embed(**fields: str) -> Any:
        return both.post("/v1/embed", files={"image": maker.images[0]}, data=fields)

    folders = ", ".join(sorted((maker.backbone.folder, second.backbone.folder)))
    said = f"several backbones are meant: send `backbone` as one of {folders}"
    assert (embed().status_code, embed().json()["detail"]) == (422, said)
    assert len(embed(backbone=SECOND).json()["embedding"]) == second.backbone.embed_dim
    assert embed(backbone=maker.backbone.folder).json()["backbone"] == maker.backbone.folder
