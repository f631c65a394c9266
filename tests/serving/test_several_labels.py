"""Tasks with several labels per image: which labels are answered, and what may take such a task's place.

Image i of the maker has the labels i and i + 1 by `tags`, and class i by `birds`.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.answers import PerLabel
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.gate import LabelledImage
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.store_layout import decision_file
from mosa_deploy.client import Client
from mosa_deploy.client.ask import AskConfig
from mosa_deploy.client.schema import Failure
from mosa_deploy.errors import ConfigError, DataError, ServiceError
from serving.backend import Lease
from serving.inference_server import encode_lease
from serving.remote_backend import decode_lease
from tests.support.app import changing, listening, maker_on, put, scores
from tests.support.tasks import CLASSES, TaskMaker, renamed

TAGS = PerLabel(scales=(1.0,) * CLASSES, offsets=(-4.0,) * CLASSES, thresholds=(0.5,) * CLASSES)
"""An output of 8 has the score 0.98, and one of 0 has 0.02."""


@pytest.fixture(scope="module")
def tags(maker: TaskMaker) -> Archive:
    return maker.make("tags", per_label=TAGS)


@pytest.fixture(scope="module")
def labels(maker: TaskMaker, tags: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The service with `tags` in the shared lane, `tags.f` in the folded one, and `birds`; nobody changes it."""
    root = Path(shutil.copytree(maker.root, tmp_path_factory.mktemp("several") / "store"))
    for archive in (tags, renamed(tags, "tags.f")):
        maker_on(root, maker).store(archive)
    with changing(root, folded=("tags.f",)) as client:
        yield client


def ask(client: TestClient, image: bytes, **fields: Any) -> Any:
    return client.post("/classify", files={"image": image}, data=fields)


@pytest.mark.parametrize("task", ["tags", "tags.f"])
def test_every_label_above_its_threshold_is_answered_and_no_other(
    labels: TestClient, maker: TaskMaker, task: str
) -> None:
    for i in (0, 7, 15):
        assert {*scores(ask(labels, maker.images[i], task=task))} == {f"class-{i}", f"class-{i + 1}"}


def test_both_lanes_give_the_scores_of_the_folded_graph_alone(
    labels: TestClient, maker: TaskMaker, tags: Archive
) -> None:
    for task in ("tags", "tags.f"):
        for image, row in zip(maker.images[:3], maker.offline(tags)[:3], strict=True):
            found = scores(ask(labels, image, task=task, threshold="0"))
            assert found == pytest.approx({f"class-{k}": float(score) for k, score in enumerate(row)}, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"threshold": "0"}, CLASSES),
        ({"threshold": "1"}, 0),
        ({"top_k": "1"}, 1),
        ({"threshold": "0", "top_k": "3"}, 3),
    ],
    ids=str,
)
def test_a_request_may_say_threshold_and_top_k(
    labels: TestClient, maker: TaskMaker, fields: dict[str, str], count: int
) -> None:
    assert len(scores(ask(labels, maker.images[0], task="tags", **fields))) == count
    query = labels.post("/classify", params={"task": "tags", **fields}, content=maker.images[0])
    assert len(scores(query)) == count


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("-0.1", "threshold: Input should be greater than or equal to 0, not '-0.1'"),
        ("1.01", "threshold: Input should be less than or equal to 1, not '1.01'"),
        ("nan", "threshold: Input should be less than or equal to 1, not 'nan'"),
        ("half", "threshold: Input should be a valid number, unable to parse string as a number, not 'half'"),
    ],
)
def test_a_threshold_outside_0_to_1_is_refused(labels: TestClient, maker: TaskMaker, given: str, said: str) -> None:
    in_form = ask(labels, maker.images[0], task="tags", threshold=given)
    in_query = labels.post("/classify", params={"task": "tags", "threshold": given}, content=maker.images[0])
    assert in_form.status_code == in_query.status_code == 422
    assert in_form.json()["detail"].startswith(f"{said}; this works: ")
    assert in_query.json()["detail"].startswith(f"{said}; this works: ")


def test_a_threshold_in_json_is_checked_too(labels: TestClient) -> None:
    answer = labels.post("/classify", json={"image": "", "task": "tags", "threshold": 2})
    assert answer.status_code == 422
    assert "threshold: Input should be less than or equal to 1" in answer.json()["detail"]


def test_a_task_with_one_class_takes_no_threshold(labels: TestClient, maker: TaskMaker) -> None:
    said = "'birds' answers with one class per image, so no threshold is taken: leave it out, or send top_k"
    alone = ask(labels, maker.images[0], task="birds", threshold="0.5")
    assert (alone.status_code, alone.json()["detail"]) == (422, said)
    birds, tagged = ask(labels, maker.images[0], tasks="birds,tags", threshold="0.5").json()["results"]
    assert (birds["status"], birds["detail"]) == (422, said)
    assert len(tagged["predictions"]) == 2


def test_the_service_says_which_tasks_answer_so(labels: TestClient) -> None:
    tags, birds = (labels.get(f"/v1/tasks/{name}").json() for name in ("tags", "birds"))
    assert (tags["multi_label"], tags["thresholds"]) == (True, [0.5] * CLASSES)
    assert (birds["multi_label"], birds["thresholds"]) == (False, None)


def test_the_client_takes_threshold_and_top_k(labels: TestClient, maker: TaskMaker) -> None:
    with listening(labels.app) as address, Client(address) as client:
        assert {*client.classify(maker.images[2], "tags").labels} == {"class-2", "class-3"}
        assert len(client.classify(maker.images[2], "tags", threshold=0.0).labels) == CLASSES
        pairs = [(maker.images[2], "tags"), (maker.images[2], "birds")]
        several, one = client.classify_many(pairs, threshold=1.0)
        assert isinstance(one, Failure)
        assert not isinstance(several, Failure)
        assert several.labels == ()
        with pytest.raises(DataError, match=r"^'tags' finds none of its labels on this image: read `labels`"):
            assert several.label
        with pytest.raises(ServiceError, match=r"threshold: Input should be less than or equal to 1"):
            client.classify(maker.images[2], "tags", threshold=1.5)


def test_how_unknown_an_image_is_cannot_be_told_by_several_labels(labels: TestClient, maker: TaskMaker) -> None:
    given = {"task": "tags", "unknown": "true"}
    answer = labels.post("/classify", files={"image": maker.images[0]}, data=given).json()
    assert (answer.get("unknown"), answer["predictions"] != []) == (None, True)
    assert answer["note"].startswith("'tags' answers with several labels per image")


def test_ask_refuses_a_threshold_outside_0_to_1() -> None:
    with pytest.raises(ConfigError, match=r"^--threshold 1\.5 is no threshold: 0 to 1$"):
        AskConfig([], ["tags"], "http://localhost:1", threshold=1.5)


def test_a_task_of_one_class_is_not_replaced_by_several_labels_unasked(admin: TestClient, maker: TaskMaker) -> None:
    several = maker.make("birds", per_label=TAGS)
    said = "the classes would change (several labels per image instead of one class): send ?new_classes=true if that"
    refused = put(admin, "birds", several)
    assert refused.status_code == 409
    assert refused.json()["detail"].startswith(said)
    assert admin.get("/v1/tasks/birds").json()["multi_label"] is False
    assert put(admin, "birds", several, new_classes="true").json()["multi_label"] is True
    back = put(admin, "birds", maker.make("birds", 1))
    assert back.status_code == 409
    assert "(one class per image instead of several labels)" in back.json()["detail"]
    assert admin.post("/v1/tasks/birds/rollback").status_code == 409
    assert admin.post("/v1/tasks/birds/rollback", params={"new_classes": "true"}).json()["multi_label"] is False


def test_a_gate_counts_images_all_of_whose_labels_are_right(admin: TestClient, maker: TaskMaker, tags: Archive) -> None:
    gate = tuple(
        # Of the first four images one label is missing.
        LabelledImage(f"{i}.png", (f"class-{i}", f"class-{i + 1}")[: 1 if i < 4 else 2], maker.images[i])
        for i in range(16)
    )
    answer = put(admin, "tags", replace(tags, gate=gate), margin="0.35").json()
    assert answer["gate"] == {"images": 16, "accuracy": 0.75, "accuracy_before": None, "margin": 0.35}
    assert put(admin, "tags", tags, margin="0.35").status_code == 200


def test_labels_of_a_gate_must_be_known(admin: TestClient, maker: TaskMaker, tags: Archive) -> None:
    gate = (LabelledImage("a.png", ("class-1", "class-99"), maker.images[0]),)
    refused = put(admin, "tags", replace(tags, gate=gate))
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("gate: unknown class 'class-99'; did you mean")


def test_workers_tell_each_other_the_thresholds() -> None:
    lease = Lease("tags", "ab", ("a", "b"), Preprocess(size=(8, 8)), "shared", None, (0.25, 0.5))
    message = json.loads(json.dumps(encode_lease("tags", lease)))
    handle: Any = (None, 3)
    assert decode_lease(message, handle) == replace(lease, handle=handle)


def test_a_store_keeps_what_a_version_answers(admin: TestClient, copied: Path, maker: TaskMaker, tags: Archive) -> None:
    put(admin, "tags", tags)
    decision = json.loads((copied / decision_file("tags", 1)).read_text())
    assert [version["multi_label"] for version in decision["versions"]] == [True]
