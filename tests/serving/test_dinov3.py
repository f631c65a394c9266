"""The service answers tasks on a DINOv3, adapters and probes in one request, as their folded graphs do."""

from pathlib import Path

import pytest

from tests.support import eva
from tests.support.app import named, running
from tests.support.tasks import TaskMaker


def test_tasks_on_a_dinov3_are_answered_in_one_request(tmp_path: Path) -> None:
    maker = TaskMaker(tmp_path, eva.NAME)
    made = {"ants": maker.make("ants", 5), "bees": maker.make("bees", 6, method="linear")}
    for archive in made.values():
        maker.store(archive)
    wanted = {name: maker.offline(archive) for name, archive in made.items()}
    files = [("image", (f"{i}.png", maker.images[i])) for i in range(3)]
    with running(maker.root) as client:
        results = client.post("/classify", files=files, data={"tasks": "ants,bees", "top_k": "99"}).json()["results"]
    for (i, task), result in zip([(i, task) for i in range(3) for task in made], results, strict=True):
        given = {each["label"]: each["score"] for each in result["predictions"]}
        assert given == pytest.approx(named(made[task], wanted[task][i]), abs=1e-5)
