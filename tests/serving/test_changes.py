"""Hot add, replace, roll back, remove, pin: by HTTP."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.decision import Decision
from serving.lanes import SharedLane
from tests.support.app import backend_of, changing, maker_on, put, running, scores, top
from tests.support.files import files_of
from tests.support.tasks import TaskMaker, packed, picture


def test_a_new_task_answers_at_once_and_after_a_restart(admin: TestClient, copied: Path, maker: TaskMaker) -> None:
    archive = maker.make("moths", 20)
    assert admin.post("/classify", files={"image": picture()}, data={"task": "moths"}).status_code == 404
    info = put(admin, "moths", archive).json()
    assert (info["state"], info["bundle"]) == ("active", archive.bundle().digest)
    assert top(admin, "moths", maker.images[2]) == ("class-22", archive.bundle().digest)
    with running(copied) as again:
        assert top(again, "moths", maker.images[2]) == ("class-22", archive.bundle().digest)


def test_a_replaced_task_rolls_back_and_forth(
    admin: TestClient, maker: TaskMaker, archives: Mapping[str, Archive], newer: Archive
) -> None:
    old = archives["birds"].bundle().digest
    assert top(admin, "birds", maker.images[0]) == ("class-0", old)
    assert put(admin, "birds", newer).json()["can_roll_back"]
    for _ in range(2):
        assert top(admin, "birds", maker.images[0]) == ("class-9", newer.bundle().digest)
        assert admin.post("/v1/tasks/birds/rollback").json()["bundle"] == old
        assert top(admin, "birds", maker.images[0]) == ("class-0", old)
        assert admin.post("/v1/tasks/birds/rollback").json()["bundle"] == newer.bundle().digest


def test_the_same_version_sent_again_rolls_back_to_the_one_before(
    admin: TestClient, archives: Mapping[str, Archive], newer: Archive
) -> None:
    for _ in range(2):
        assert put(admin, "birds", newer).status_code == 200
    assert admin.post("/v1/tasks/birds/rollback").json()["bundle"] == archives["birds"].bundle().digest


def test_a_rollback_outlives_the_export_it_goes_back_to(
    admin: TestClient, copied: Path, maker: TaskMaker, archives: Mapping[str, Archive], newer: Archive
) -> None:
    put(admin, "birds", newer)
    third = maker.make("birds", 11)
    TaskMaker.store(maker_on(copied, maker), third, replaces=newer.key)
    with changing(copied) as again:
        assert top(again, "birds", maker.images[0]) == ("class-11", third.bundle().digest)
        again.post("/v1/tasks/birds/rollback")
        assert top(again, "birds", maker.images[0]) == ("class-9", newer.bundle().digest)


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_what_was_exported_comes_back_although_another_export_has_replaced_it(
    admin: TestClient, copied: Path, maker: TaskMaker, archives: Mapping[str, Archive], newer: Archive, change: str
) -> None:
    if change == "replaced":
        put(admin, "birds", newer)
    else:
        admin.delete("/v1/tasks/birds")
    maker_on(copied, maker).store(maker.make("birds", 11))
    assert admin.post("/v1/tasks/birds/rollback").json()["bundle"] == archives["birds"].bundle().digest
    assert top(admin, "birds", maker.images[0])[0] == "class-0"


def test_no_more_versions_are_kept_than_the_setting_says(copied: Path, maker: TaskMaker, newer: Archive) -> None:
    with changing(copied, versions=2) as admin:
        third, lane = maker.make("birds", 11), backend_of(admin).registry.acquire("cracks").lane
        assert isinstance(lane, SharedLane)
        free = len(lane.bank.free)
        for archive in (newer, third):
            put(admin, "birds", archive)
            assert top(admin, "birds", maker.images[0])[1] == archive.bundle().digest
        assert len(lane.bank.free) == free
    kept = {path.name for path in (copied / "uploads").iterdir()}
    assert kept == {f"{archive.key}.mosa" for archive in (newer, third)}


def test_a_removed_task_is_gone(admin: TestClient) -> None:
    assert admin.delete("/v1/tasks/birds").status_code == 204
    assert admin.delete("/v1/tasks/birds").status_code == 404
    assert admin.post("/classify", files={"image": picture()}, data={"task": "birds"}).status_code == 404
    assert "birds" not in [entry["task"] for entry in admin.get("/v1/tasks").json()["tasks"]]


def test_a_removed_task_is_gone_also_after_a_restart_until_it_is_rolled_back(
    admin: TestClient, copied: Path, maker: TaskMaker
) -> None:
    admin.delete("/v1/tasks/birds")
    with changing(copied) as again:
        assert again.get("/v1/tasks/birds").status_code == 404
        again.post("/v1/tasks/birds/rollback")
        assert top(again, "birds", maker.images[3])[0] == "class-3"


def test_removing_a_task_lets_go_of_its_pin(admin: TestClient) -> None:
    assert admin.post("/v1/tasks/birds/pin").json()["pinned"]
    admin.delete("/v1/tasks/birds", params={"force": "true"})
    assert not admin.post("/v1/tasks/birds/rollback").json()["pinned"]


def test_a_bundle_whose_canary_fails_leaves_the_old_version_and_says_why(
    admin: TestClient, copied: Path, maker: TaskMaker, newer: Archive
) -> None:
    bundle = newer.bundle()
    canary = Canary(bundle.canary.images, np.roll(bundle.canary.probabilities, 1, axis=1))
    before, held = files_of(copied), backend_of(admin).registry.acquire("birds")
    assert isinstance(held.lane, SharedLane)
    free = set(held.lane.bank.free)
    response = put(admin, "birds", packed(Bundle(bundle.record, bundle.tensors, canary)))
    assert response.status_code == 422
    assert response.json()["detail"].startswith("'birds': the shared graph misses its canary's probabilities by ")
    assert top(admin, "birds", maker.images[0])[0] == "class-0"
    assert files_of(copied) == before
    assert set(held.lane.bank.free) == free


def test_what_is_not_finite_fails_its_canary(admin: TestClient, maker: TaskMaker, newer: Archive) -> None:
    bundle = newer.bundle()
    weight = 1e38 * bundle.head[0]
    canary, tensors = bundle.canary, bundle.tensors | {"head.weight": weight.astype(np.float32)}
    response = put(admin, "birds", packed(Bundle(bundle.record, tensors, canary)))
    assert (response.status_code, "by inf" in response.json()["detail"]) == (422, True)
    assert top(admin, "birds", maker.images[0])[0] == "class-0"


def test_an_image_on_which_a_task_overflows_is_told_so(admin: TestClient, maker: TaskMaker) -> None:
    loaded = backend_of(admin).registry.acquire("birds")
    assert loaded.head is not None
    loaded.head = np.float32(3e38) * loaded.head[0], loaded.head[1]
    files = [("image", picture()), ("image", picture())]
    results = admin.post("/classify", files=files, data={"task": ["birds", "cracks"]}).json()["results"]
    assert (results[0]["status"], "'birds' overflows" in results[0]["detail"]) == (503, True)
    assert results[1]["predictions"]


def test_a_version_is_written_before_the_decision_that_names_it(
    admin: TestClient, copied: Path, newer: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    decisions, written = backend_of(admin).registry.store.decisions, []
    write = decisions.write

    def watched(name: str, decision: Decision) -> None:
        written.append((copied / "uploads" / f"{decision.current}.mosa").exists())
        write(name, decision)

    monkeypatch.setattr(decisions, "write", watched)
    put(admin, "birds", newer)
    assert written == [True]


def test_a_bundle_of_another_backbone_is_refused(admin: TestClient, newer: Archive) -> None:
    bundle = newer.bundle()
    backbone = bundle.record.backbone.model_copy(update={"sha256": "ab" * 32})
    other = packed(Bundle(bundle.record.model_copy(update={"backbone": backbone}), bundle.tensors, bundle.canary))
    response = put(admin, "birds", other)
    assert response.status_code == 422
    assert "-abababab, which is not in the store" in response.json()["detail"]


def test_other_classes_are_a_conflict_unless_they_are_asked_for(admin: TestClient, maker: TaskMaker) -> None:
    other = maker.make("birds", 3, turn=5)
    response = put(admin, "birds", other)
    assert response.status_code == 409
    assert "send ?new_classes=true" in response.json()["detail"]
    assert put(admin, "birds", other, new_classes="true").status_code == 200
    assert top(admin, "birds", maker.images[0]) == ("class-8", other.bundle().digest)


def test_a_kind_of_task_that_the_backbone_has_no_graph_for_can_only_be_folded(
    admin: TestClient, copied: Path, archives: Mapping[str, Archive], maker: TaskMaker
) -> None:
    (folder,) = (copied / "backbones").iterdir()
    index = json.loads((folder / "graph.json").read_text())
    assert sorted(index["files"]) == ["plain.onnx", "shared-qkv.onnx", "shared.onnx"]
    del index["files"]["shared-qkv.onnx"]
    (folder / "graph.json").write_text(json.dumps(index))
    with changing(copied) as client:
        assert client.get("/v1/tasks/grains").json()["state"] == "refused"
        response = put(client, "grains", archives["grains"])
        assert response.status_code == 422
        assert "has no shared-qkv.onnx in the store" in response.json()["detail"]
        assert put(client, "grains", archives["grains"], lane="folded").status_code == 200
        assert top(client, "grains", maker.images[0])[0] == "class-4"


def test_a_bundle_goes_to_its_own_name_only(admin: TestClient, newer: Archive) -> None:
    response = put(admin, "cracks", newer)
    assert (response.status_code, response.json()["detail"]) == (
        422,
        "the bundle is of task 'birds': send it to /v1/tasks/birds",
    )


@pytest.mark.parametrize("name", ["Birds", "-x", "a" * 65, "a b", "%2e%2e", "..%2Fx"])
def test_a_name_that_no_task_may_have_is_refused(admin: TestClient, newer: Archive, name: str) -> None:
    assert put(admin, name, newer).status_code in (404, 422)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-100],
        lambda content: content[: len(content) // 2] + b"\0" + content[len(content) // 2 + 1 :],
        lambda content: b"no zip",
    ],
)
def test_a_damaged_archive_changes_nothing(
    admin: TestClient, copied: Path, newer: Archive, damage: Callable[[bytes], bytes]
) -> None:
    before = files_of(copied)
    response = put(admin, "birds", damage(newer.pack()))
    assert response.status_code == 400
    assert files_of(copied) == before


def test_a_lane_is_chosen_with_an_upload_and_stays(
    admin: TestClient, copied: Path, maker: TaskMaker, newer: Archive
) -> None:
    assert put(admin, "birds", newer, lane="folded").json()["lane"] == "folded"
    assert scores(admin.post("/classify", files={"image": picture()}, data={"task": "birds"}))
    assert put(admin, "birds", maker.make("birds", 11)).json()["lane"] == "folded"
    with running(copied) as again:
        assert again.get("/v1/tasks/birds").json()["lane"] == "folded"


def test_a_damaged_task_is_refused_by_name_and_the_others_are_served(copied: Path) -> None:
    record = copied / "tasks" / "birds" / "adapter.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "temperature": 9.0}))
    tensors = copied / "tasks" / "cracks" / "adapter.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-20])
    (copied / "tasks" / "fields" / "adapter.json").write_text("{")
    with running(copied) as client:
        answers = {
            task: client.post("/classify", files={"image": picture()}, data={"task": task})
            for task in ("birds", "cracks", "fields", "fields.b")
        }
        assert [answer.status_code for answer in answers.values()] == [503, 503, 503, 200]
        assert "misses its canary's probabilities" in answers["birds"].json()["detail"]
        assert "altered or cut short" in answers["cracks"].json()["detail"]
        assert "adapter.json" in answers["fields"].json()["detail"]
        states = [entry["state"] for entry in client.get("/v1/tasks").json()["tasks"]]
        assert states == ["refused", "refused", "refused", "active", "active"]


def test_a_damaged_task_is_mended_by_an_upload(copied: Path, maker: TaskMaker, newer: Archive) -> None:
    (copied / "tasks" / "birds" / "adapter.json").write_text("{")
    with changing(copied) as client:
        assert put(client, "birds", newer).status_code == 200
        assert top(client, "birds", maker.images[0])[0] == "class-9"
    with running(copied) as again:
        assert top(again, "birds", maker.images[0])[0] == "class-9"
