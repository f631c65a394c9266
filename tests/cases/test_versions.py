"""Versions of a served task: what is kept, what a rollback may bring back, and what an export may replace."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from export.replacing import Replaced
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.store_layout import StoreLayout
from tests.support.app import changing, maker_on, put, running, top
from tests.support.tasks import TaskMaker, packed


@pytest.fixture(scope="module")
def renamed_classes(maker: TaskMaker) -> Archive:
    """A version of `birds` whose classes have another order."""
    return maker.make("birds", 3, turn=5)


def kept(client: TestClient, name: str = "birds") -> list[tuple[str, bool]]:
    """The versions of a task: the first characters of each digest, and whether it is served."""
    versions = client.get(f"/v1/tasks/{name}/versions").json()["versions"]
    return [(each["bundle"][:12], each["served"]) for each in versions]


def digest(archive: Archive) -> str:
    return archive.bundle().digest[:12]


def test_versions_say_where_they_came_from_how_good_they_are_and_which_is_served(
    admin: TestClient, archives: Mapping[str, Archive], newer: Archive
) -> None:
    bundle = newer.bundle()
    record = bundle.record.model_copy(update={"metrics": {"validation_accuracy": 0.875}})
    upload = packed(Bundle(record, bundle.tensors, bundle.canary))
    put(admin, "birds", upload)
    new, old = admin.get("/v1/tasks/birds/versions").json()["versions"]
    assert (new["source"], new["accuracy"], new["served"]) == ("upload", 0.875, True)
    assert (old["source"], old["accuracy"], old["served"]) == ("export", None, False)
    assert old["bundle"] == archives["birds"].bundle().digest
    assert new["added"].startswith("20")
    assert new["added"].endswith("Z")
    assert new["classes"] == list(record.classes)


def test_a_version_is_served_again_by_the_start_of_its_digest(
    admin: TestClient, copied: Path, maker: TaskMaker, archives: Mapping[str, Archive], newer: Archive
) -> None:
    third = maker.make("birds", 11)
    put(admin, "birds", newer)
    put(admin, "birds", third)
    first = archives["birds"]
    assert admin.post("/v1/tasks/birds/rollback", json={"digest": digest(first)}).status_code == 200
    assert kept(admin) == [(digest(third), False), (digest(newer), False), (digest(first), True)]
    assert admin.post(f"/v1/tasks/birds/rollback?digest={digest(newer)}").status_code == 200
    assert top(admin, "birds", maker.images[0])[0] == "class-9"
    with running(copied, prefetch=0) as again:
        assert top(again, "birds", maker.images[0])[0] == "class-9"
        assert kept(again) == kept(admin)


def test_a_rollback_to_the_served_digest_changes_nothing(admin: TestClient, newer: Archive) -> None:
    put(admin, "birds", newer)
    for _ in range(2):
        assert admin.post("/v1/tasks/birds/rollback", json={"digest": digest(newer)}).json()["bundle"][:12] == digest(
            newer
        )


def test_a_digest_that_no_version_has_is_told_which_there_are(
    admin: TestClient, archives: Mapping[str, Archive]
) -> None:
    answer = admin.post("/v1/tasks/birds/rollback", json={"digest": "0" * 20})
    expected = f"no version of 'birds' begins with {'0' * 20}; it has {digest(archives['birds'])}"
    assert (answer.status_code, answer.json()["detail"]) == (404, expected)


def test_a_start_that_two_versions_share_is_refused(admin: TestClient, newer: Archive) -> None:
    put(admin, "birds", newer)
    bundle = newer.bundle()
    warmer = packed(Bundle(bundle.record.model_copy(update={"seed": 77}), bundle.tensors, bundle.canary))
    put(admin, "birds", warmer)
    answer = admin.post("/v1/tasks/birds/rollback", json={"digest": digest(newer)})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("2 versions of 'birds' begin with ")


@pytest.mark.parametrize("body", [{"digest": "XYZ"}, {"digest": ""}, {"dijest": "ab"}, {"digest": 5}])
def test_a_body_that_is_no_digest_is_refused_and_nothing_is_rolled_back(
    admin: TestClient, newer: Archive, body: dict[str, object]
) -> None:
    put(admin, "birds", newer)
    assert admin.post("/v1/tasks/birds/rollback", json=body).status_code == 422
    assert kept(admin)[0] == (digest(newer), True)


def test_a_misspelt_flag_is_not_ignored(admin: TestClient, renamed_classes: Archive) -> None:
    answer = put(admin, "birds", renamed_classes, new_clases="true")
    expected = "unknown query parameter 'new_clases'; did you mean new_classes?"
    assert (answer.status_code, answer.json()["detail"]) == (422, expected)


def test_a_rollback_across_changed_classes_asks(admin: TestClient, renamed_classes: Archive) -> None:
    put(admin, "birds", renamed_classes, new_classes="true")
    answer = admin.post("/v1/tasks/birds/rollback")
    expected = "the classes would change (the same in another order): send ?new_classes=true if that is meant"
    assert (answer.status_code, answer.json()["detail"]) == (409, expected)
    assert kept(admin)[0] == (digest(renamed_classes), True)
    assert admin.post("/v1/tasks/birds/rollback?new_classes=true").status_code == 200


def test_so_does_one_by_digest_and_one_of_a_pinned_task(
    admin: TestClient, archives: Mapping[str, Archive], renamed_classes: Archive
) -> None:
    put(admin, "birds", renamed_classes, new_classes="true")
    admin.post("/v1/tasks/birds/pin")
    assert admin.post("/v1/tasks/birds/rollback", json={"digest": digest(archives["birds"])}).status_code == 409


def test_a_removed_task_comes_back_with_other_classes_only_if_that_is_meant(
    admin: TestClient, renamed_classes: Archive
) -> None:
    admin.delete("/v1/tasks/birds")
    assert put(admin, "birds", renamed_classes).status_code == 409
    assert put(admin, "birds", renamed_classes, new_classes="true").status_code == 200
    assert admin.post("/v1/tasks/birds/rollback").status_code == 409


def test_the_difference_of_the_classes_is_named(admin: TestClient, maker: TaskMaker) -> None:
    answer = put(admin, "birds", maker.make("birds", 3, classes=30))
    assert "(gone: class-30, class-31)" in answer.json()["detail"]


def test_a_pinned_task_is_removed_only_by_force(admin: TestClient) -> None:
    admin.post("/v1/tasks/birds/pin")
    answer = admin.delete("/v1/tasks/birds")
    expected = "'birds' is pinned: let it go first, or send ?force=true if that is meant"
    assert (answer.status_code, answer.json()["detail"]) == (409, expected)
    assert admin.delete("/v1/tasks/birds?force=true").status_code == 204


def test_an_export_does_not_take_the_place_of_an_upload_at_the_next_start(
    admin: TestClient, copied: Path, maker: TaskMaker, newer: Archive, said: pytest.LogCaptureFixture
) -> None:
    put(admin, "birds", newer)
    third = maker.make("birds", 11)
    maker_on(copied, maker).store(third)
    with changing(copied, prefetch=0) as again:
        assert top(again, "birds", maker.images[0]) == ("class-9", newer.bundle().digest)
        assert f"a newer export is not served: an uploaded version is served; roll back to {digest(third)}" in said.text
        assert again.post("/v1/tasks/birds/rollback", json={"digest": digest(third)}).status_code == 200
    with running(copied, prefetch=0) as later:
        assert top(later, "birds", maker.images[0])[0] == "class-11"


def test_nor_does_an_export_with_other_classes_take_the_place_of_an_export(
    admin: TestClient, copied: Path, maker: TaskMaker, archives: Mapping[str, Archive], renamed_classes: Archive
) -> None:
    put(admin, "birds", archives["birds"])
    maker_on(copied, maker).store(renamed_classes)
    with changing(copied, prefetch=0) as again:
        assert top(again, "birds", maker.images[0]) == ("class-0", archives["birds"].bundle().digest)
        again.post("/v1/tasks/birds/rollback", params={"digest": digest(renamed_classes)})
        assert top(again, "birds", maker.images[0])[0] == "class-0"
        flags = {"digest": digest(renamed_classes), "new_classes": "true"}
        assert again.post("/v1/tasks/birds/rollback", params=flags).status_code == 200


def test_an_export_that_may_replace_the_upload_does(
    admin: TestClient, copied: Path, maker: TaskMaker, newer: Archive, renamed_classes: Archive
) -> None:
    put(admin, "birds", newer)
    maker_on(copied, maker).store(renamed_classes, replaces=newer.key)
    with running(copied, prefetch=0) as again:
        assert top(again, "birds", maker.images[0])[1] == renamed_classes.bundle().digest


def test_an_upload_that_came_after_the_export_stays(
    admin: TestClient, copied: Path, maker: TaskMaker, archives: Mapping[str, Archive], newer: Archive
) -> None:
    maker_on(copied, maker).store(maker.make("birds", 11), replaces=archives["birds"].key)
    put(admin, "birds", newer)
    with running(copied, prefetch=0) as again:
        assert top(again, "birds", maker.images[0])[1] == newer.bundle().digest


def test_an_export_that_was_replaced_comes_back_by_a_rollback(
    copied: Path, maker: TaskMaker, archives: Mapping[str, Archive], newer: Archive
) -> None:
    store = StoreLayout(copied)
    replaced = Replaced.find(store, newer.bundle().record, new_classes=False, replace_upload=False)
    replaced.keep()
    replaced.write_note(store.task("birds"), newer.key)
    maker_on(copied, maker).store(newer)
    with changing(copied, prefetch=0) as client:
        assert top(client, "birds", maker.images[0])[0] == "class-9"
        assert client.post("/v1/tasks/birds/rollback").json()["bundle"] == archives["birds"].bundle().digest
        assert top(client, "birds", maker.images[0])[0] == "class-0"
        assert kept(client) == [(digest(newer), False), (digest(archives["birds"]), True)]
