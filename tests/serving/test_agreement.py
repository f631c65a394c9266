"""A task is answered in int8 only if its validation images lose little accuracy by it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.gate import LabelledImage
from tests.support.app import CPU, backend_of, changing, maker_on, plans, put, running, top
from tests.support.quantised import on_the_edge, undecided, write_validation
from tests.support.tasks import TaskMaker
from tests.support.waiting import wait_for

INT8 = ("onnxruntime-cpu", "int8")
IMAGES = 24
FLAT = 2.0
"""So steep is a head whose canary passes in int8."""


@pytest.fixture(scope="session")
def edges(maker: TaskMaker) -> Archive:
    """A task whose canary passes in int8."""
    return undecided(maker, "edges", FLAT)


@pytest.fixture(scope="session")
def hard(maker: TaskMaker, edges: Archive) -> list[LabelledImage]:
    """Validation images of that task, about which fp32 and int8 disagree."""
    return on_the_edge(maker, edges, IMAGES)


@pytest.fixture
def store(quantised: Path, maker: TaskMaker, edges: Archive, hard: list[LabelledImage], tmp_path: Path) -> Path:
    """A store with an int8 file, where the task carries these images."""
    root = Path(shutil.copytree(quantised, tmp_path / "store"))
    maker_on(root, maker).store(edges)
    write_validation(root, edges, hard)
    return root


def entry_of(client: TestClient, task: str) -> Mapping[str, Any]:
    """What the service says of a task."""
    (entry,) = (each for each in client.get("/v1/tasks").json()["tasks"] if each["task"] == task)
    return dict(entry)


def reason(store: Path, task: str, **settings: object) -> str | None:
    with running(store, precision="int8", **settings) as client:
        entry = entry_of(client, task)
        assert (entry["runtime"], entry["precision"]) == CPU if entry["fallback"] else INT8
        return str(entry["fallback"]) if entry["fallback"] else None


def test_a_task_that_answers_its_validation_images_worse_stays_in_fp32(store: Path) -> None:
    said = reason(store, "edges")
    assert said
    assert f"in int8 on its {IMAGES} validation images, 1.0000 in fp32" in said


def test_the_same_images_let_it_pass_where_more_may_be_lost(store: Path) -> None:
    assert reason(store, "edges", max_accuracy_loss=100) is None


def test_what_was_counted_is_not_counted_again(store: Path, edges: Archive) -> None:
    first = reason(store, "edges")
    (store / "tasks" / "edges" / "validation.zip").unlink()
    assert reason(store, "edges") == first
    kept = store / "agreements" / f"{edges.key}.json"
    counts = json.loads(kept.read_text())
    assert counts["right"]["fp32"] == IMAGES
    kept.write_text("{")
    assert "nothing says what int8 costs it" in str(reason(store, "edges"))


def test_no_image_is_asked_where_the_export_recorded_the_accuracy_of_the_file(
    store: Path, archives: Mapping[str, Archive], hard: list[LabelledImage]
) -> None:
    write_validation(store, archives["birds"], hard)
    assert reason(store, "birds") is None
    assert not (store / "agreements" / f"{archives['birds'].key}.json").exists()


def test_damaged_images_cost_the_task_alone_its_int8(store: Path) -> None:
    (store / "tasks" / "edges" / "validation.zip").write_bytes(b"PK")
    with running(store, precision="int8") as client:
        assert (plans(client)["edges"], plans(client)["birds"]) == (CPU, INT8)
    assert "its validation images cannot be read" in str(reason(store, "edges"))


def until(client: TestClient, task: str, words: str) -> None:
    """Wait until the service says this of a task's fallback, and check that it still answers in fp32."""
    wait_for(lambda: words in str(entry_of(client, task)["fallback"]))
    assert plans(client)[task] == CPU


def test_an_upload_answers_at_once_in_fp32_and_is_held_to_the_images_that_it_brings(
    store: Path, maker: TaskMaker, hard: list[LabelledImage]
) -> None:
    owls, crows = (undecided(maker, name, FLAT) for name in ("owls", "crows"))
    with changing(store, precision="int8") as client:
        answer = put(client, "owls", replace(owls, validation=tuple(hard))).json()
        assert (answer["precision"], "is being compared" in answer["fallback"]) == ("fp32", True)
        until(client, "owls", f"in int8 on its {IMAGES} validation images, 1.0000 in fp32")
        assert "carries no validation images" in put(client, "crows", crows).json()["fallback"]


def test_an_upload_whose_images_agree_moves_to_int8_without_a_request_that_fails(
    store: Path, maker: TaskMaker, hard: list[LabelledImage]
) -> None:
    owls = replace(undecided(maker, "owls", FLAT), validation=tuple(hard))
    with changing(store, precision="int8", max_accuracy_loss=100) as client:
        assert put(client, "owls", owls).json()["precision"] == "fp32"
        wait_for(lambda: bool(top(client, "owls", maker.images[0])) and plans(client)["owls"] == INT8)
        assert entry_of(client, "owls")["fallback"] is None
        # What was counted is kept, so nothing is postponed again.
        assert put(client, "owls", owls).json()["precision"] == "int8"


def test_a_version_that_is_replaced_while_it_is_compared_does_not_come_back(
    store: Path, maker: TaskMaker, hard: list[LabelledImage]
) -> None:
    first, second = (replace(undecided(maker, "owls", steep), validation=tuple(hard)) for steep in (FLAT, FLAT / 2))
    with changing(store, precision="int8", max_accuracy_loss=100) as client:
        put(client, "owls", first)
        put(client, "owls", second)
        wait_for(lambda: plans(client)["owls"] == INT8)
        assert top(client, "owls", maker.images[0])[1] == second.bundle().digest
        # Both comparisons have ended then.
        backend_of(client).registry.close()
        assert (plans(client)["owls"], top(client, "owls", maker.images[0])[1]) == (INT8, second.bundle().digest)


def test_a_task_that_is_pinned_while_it_is_compared_stays_pinned(
    store: Path, maker: TaskMaker, hard: list[LabelledImage]
) -> None:
    owls = replace(undecided(maker, "owls", FLAT), validation=tuple(hard))
    with changing(store, precision="int8", max_accuracy_loss=100) as client:
        put(client, "owls", owls)
        assert client.post("/v1/tasks/owls/pin").status_code < 300
        wait_for(lambda: plans(client)["owls"] == INT8)
        loaded = backend_of(client).registry.entries["owls"].loaded
        assert loaded
        assert loaded.pinned
