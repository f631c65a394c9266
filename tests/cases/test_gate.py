"""The promotion gate: a new version must not be worse than the served one on labelled images, by a stated margin."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.gate import LabelledImage, images_needed
from tests.support.app import changing, put, top
from tests.support.files import files_of
from tests.support.tasks import TaskMaker

MARGIN = "0.35"
"""15 images tell it, and the maker has 16."""


def gate_of(maker: TaskMaker, seed: int = 0, count: int = 16) -> tuple[LabelledImage, ...]:
    """Images with the labels that the version of a seed gives them."""
    return tuple(LabelledImage(f"{i}.png", f"class-{i + seed}", maker.images[i]) for i in range(count))


@pytest.fixture(scope="module")
def equal(maker: TaskMaker) -> Archive:
    """A version of `birds` that answers the maker's images as the exported one does."""
    return maker.make("birds", 32)


def sent(client: TestClient, archive: Archive, gate: tuple[LabelledImage, ...] = (), **query: str) -> Any:
    return put(client, "birds", replace(archive, gate=gate), **query)


def test_a_version_that_is_as_good_is_served_and_both_accuracies_are_told(
    admin: TestClient, maker: TaskMaker, equal: Archive, said: pytest.LogCaptureFixture
) -> None:
    answer = sent(admin, equal, gate_of(maker), margin=MARGIN).json()
    assert answer["gate"] == {"images": 16, "accuracy": 1.0, "accuracy_before": 1.0, "margin": 0.35}
    assert "accuracy 1.0000 on 16 labelled images, 1.0000 by the served version (0 lost, 0 won)" in said.text


def test_a_worse_version_is_refused_with_both_accuracies_and_the_old_one_stays(
    admin: TestClient, copied: Path, maker: TaskMaker, newer: Archive
) -> None:
    before = files_of(copied)
    answer = sent(admin, newer, gate_of(maker), margin=MARGIN)
    assert answer.status_code == 409
    assert answer.json()["detail"] == (
        "'birds' is worse: accuracy 0.0000 on 16 labelled images, 1.0000 by the served version (16 lost, 0 won), margin"
        " 0.35; send ?force=true to serve it all the same"
    )
    assert top(admin, "birds", maker.images[0])[0] == "class-0"
    assert files_of(copied) == before


def test_force_serves_a_worse_version(admin: TestClient, maker: TaskMaker, newer: Archive) -> None:
    answer = sent(admin, newer, gate_of(maker), margin=MARGIN, force="true").json()
    assert (answer["gate"]["accuracy"], answer["gate"]["accuracy_before"]) == (0.0, 1.0)
    assert top(admin, "birds", maker.images[0])[0] == "class-9"


def test_a_better_version_is_served(admin: TestClient, maker: TaskMaker, newer: Archive) -> None:
    answer = sent(admin, newer, gate_of(maker, seed=9), margin=MARGIN).json()
    assert (answer["gate"]["accuracy"], answer["gate"]["accuracy_before"]) == (1.0, 0.0)


def test_two_images_are_refused_with_the_number_that_would_do(
    admin: TestClient, copied: Path, maker: TaskMaker, equal: Archive
) -> None:
    before = files_of(copied)
    answer = sent(admin, equal, gate_of(maker, count=2))
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "2 labelled images cannot tell a difference of 0.02: that takes 250, so that a version which is worse by it"
        " loses at least 5 (sign test, 5 %); send as many, or ?force=true"
    )
    assert files_of(copied) == before
    assert sent(admin, equal, gate_of(maker, count=2), force="true").status_code == 200


def test_so_are_two_images_that_are_sent_many_times(admin: TestClient, maker: TaskMaker, equal: Archive) -> None:
    many = tuple(replace(image, name=f"{i}.png") for i in range(20) for image in gate_of(maker, count=2))
    assert sent(admin, equal, many, margin=MARGIN).json()["detail"].startswith("2 labelled images cannot tell ")


def test_the_first_version_of_a_task_has_nothing_to_be_compared_with(admin: TestClient, maker: TaskMaker) -> None:
    moths = replace(maker.make("moths", 0), gate=gate_of(maker))
    answer = put(admin, "moths", moths, margin=MARGIN).json()
    assert (answer["gate"]["accuracy"], answer["gate"]["accuracy_before"]) == (1.0, None)


def test_the_images_are_kept_for_the_next_upload_also_after_a_restart(
    copied: Path, maker: TaskMaker, equal: Archive, newer: Archive
) -> None:
    with changing(copied, promotion_margin=0.35, prefetch=0) as client:
        assert sent(client, equal, gate_of(maker)).status_code == 200
    with changing(copied, promotion_margin=0.35, prefetch=0) as again:
        assert sent(again, newer).status_code == 409
        assert top(again, "birds", maker.images[0])[0] == "class-0"
    with changing(copied, prefetch=0) as finer:
        kept = "16 labelled images that the service keeps from an earlier upload cannot tell a difference of 0.02"
        assert sent(finer, newer).json()["detail"].startswith(kept)
        assert sent(finer, equal, lane="folded").json()["lane"] == "folded"


def test_kept_images_that_do_not_fit_new_classes_are_not_ignored(
    copied: Path, maker: TaskMaker, equal: Archive
) -> None:
    fewer = maker.make("birds", 0, classes=8)
    with changing(copied, promotion_margin=0.35, prefetch=0) as client:
        sent(client, equal, gate_of(maker))
        answer = sent(client, fewer, new_classes="true")
        assert answer.status_code == 409
        assert "kept do not fit the new version (gate: unknown class 'class-8'; did you mean" in answer.json()["detail"]
        assert sent(client, fewer, new_classes="true", force="true").json()["gate"] is None
        assert sent(client, fewer).status_code == 200


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (LabelledImage("a.png", "class-99", b""), "gate: unknown class 'class-99'; did you mean"),
        (LabelledImage("a.png", "class-1", b"text"), "gate/class-1/a.png: not an image"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(
    admin: TestClient, maker: TaskMaker, equal: Archive, image: LabelledImage, reason: str
) -> None:
    answer = sent(admin, equal, (*gate_of(maker), image), margin=MARGIN)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(reason)


def test_one_image_with_two_labels_is_refused(admin: TestClient, maker: TaskMaker, equal: Archive) -> None:
    twice = (*gate_of(maker), LabelledImage("x.png", "class-1", maker.images[0]))
    answer = sent(admin, equal, twice, margin=MARGIN)
    assert answer.json()["detail"] == "gate: gate/class-0/0.png and gate/class-1/x.png are one image: give it one label"


@pytest.mark.parametrize("margin", ["0", "1", "-0.1", "nan", "much"])
def test_a_margin_that_cannot_be_is_refused(admin: TestClient, equal: Archive, margin: str) -> None:
    assert sent(admin, equal, margin=margin).status_code == 422


def test_a_zip_of_a_common_tool_with_folders_of_images_is_read(
    admin: TestClient, maker: TaskMaker, equal: Archive
) -> None:
    buffer = io.BytesIO(equal.pack())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("gate/", b"")
        for i in range(16):
            archive.writestr(f"gate/class-{i}/", b"")
            archive.writestr(f"gate/class-{i}/photo {i}.png", maker.images[i])
    answer = admin.put("/v1/tasks/birds", content=buffer.getvalue(), params={"margin": MARGIN})
    assert answer.json()["gate"]["images"] == 16


@pytest.mark.parametrize("name", ["gate/loose.png", "gate/a/b/c.png", "gate//a.png", "gates/a/b.png", "gate"])
def test_a_file_in_another_place_of_the_zip_is_refused(
    admin: TestClient, equal: Archive, name: str, archives: Mapping[str, Archive]
) -> None:
    buffer = io.BytesIO(equal.pack())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, b"x")
    answer = admin.put("/v1/tasks/birds", content=buffer.getvalue())
    assert (answer.status_code, "images in gate/<class>/" in answer.json()["detail"]) == (400, True)


def test_classes_with_any_name_survive_the_zip(equal: Archive, maker: TaskMaker) -> None:
    labels = ["a/b", "50%", "río", "..", "a b", "%2F"]
    gate = tuple(LabelledImage("1.png", label, maker.images[0]) for label in labels)
    unpacked = Archive.unpack(replace(equal, gate=gate).pack(), 10 << 20)
    assert [image.label for image in unpacked.gate] == labels
    assert unpacked.key == equal.key


def test_the_number_of_images_follows_the_margin() -> None:
    assert [images_needed(margin) for margin in (0.5, 0.1, 0.05, 0.02)] == [10, 50, 100, 250]
