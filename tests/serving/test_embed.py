"""`POST /v1/embed`: a task's own features, and the plain backbone's."""

import asyncio
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess
from serving.backend import Answered, Backend, Embedded, Lease, Outcome
from serving.errors import RequestError
from serving.inference_server import InferenceServer
from serving.remote_backend import RemoteBackend
from tests.support.app import changing, running
from tests.support.tasks import TaskMaker


def embed(client: TestClient, images: Sequence[bytes], **fields: Any) -> Any:
    files = [("image", (f"{i}.png", image)) for i, image in enumerate(images)]
    return client.post("/v1/embed", files=files, data=fields)


def features(answer: Any) -> Array:
    """The features of the only image."""
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["embedding"], dtype=np.float32)


@pytest.fixture(scope="module")
def plain(maker: TaskMaker) -> Array:
    """The features (n, C) of the maker's images that timm's model gives."""
    images = maker.preprocess.normalise(np.stack([maker.preprocess.read(image) for image in maker.images]))
    with torch.inference_mode():
        model = maker.model.eval()
        return model.forward_head(model.forward_features(torch.from_numpy(images)), pre_logits=True).numpy()


@pytest.mark.parametrize("task", ["birds", "grains"])
def test_a_task_gives_the_features_that_its_head_reads(
    client: TestClient, maker: TaskMaker, archives: Mapping[str, Archive], plain: Array, task: str
) -> None:
    wanted = maker.features(archives[task].bundle())
    answer = embed(client, [maker.images[5]], task=task)
    np.testing.assert_allclose(features(answer), wanted[5], atol=1e-4)
    assert np.abs(wanted[5] - plain[5]).max() > 0.01
    given = answer.json()
    assert given.keys() == {"task", "backbone", "bundle", "embedding", "milliseconds"}
    assert (given["task"], given["bundle"]) == (task, archives[task].bundle().digest)


def test_without_a_task_they_are_the_plain_backbone_s(client: TestClient, maker: TaskMaker, plain: Array) -> None:
    for fields in ({}, {"backbone": maker.backbone.folder}, {"backbone": maker.backbone.name}):
        answer = embed(client, [maker.images[5]], **fields)
        np.testing.assert_allclose(features(answer), plain[5], atol=1e-4)
        assert answer.json().keys() == {"backbone", "embedding", "milliseconds"}
        assert answer.json()["backbone"] == maker.backbone.folder


def test_features_of_length_1_are_given_on_request(client: TestClient, maker: TaskMaker, plain: Array) -> None:
    found = features(embed(client, [maker.images[5]], normalise="true"))
    np.testing.assert_allclose(found, plain[5] / np.linalg.norm(plain[5]), atol=1e-5)


def test_several_images_are_answered_by_a_list_each_by_its_task(
    client: TestClient, maker: TaskMaker, archives: Mapping[str, Archive]
) -> None:
    tasks = ["birds", "cracks", "birds", "dogs"]
    images = [maker.images[0], maker.images[1], b"no image", maker.images[3]]
    results = embed(client, images, task=tasks).json()["results"]
    for i, task in enumerate(tasks[:2]):
        np.testing.assert_allclose(results[i]["embedding"], maker.features(archives[task].bundle())[i], atol=1e-4)
    assert [each["status"] for each in results[2:]] == [415, 404]


def test_an_image_may_be_given_to_several_tasks(client: TestClient, maker: TaskMaker) -> None:
    results = embed(client, [maker.images[0]], tasks="birds,cracks").json()["results"]
    assert [each["task"] for each in results] == ["birds", "cracks"]


def test_it_comes_as_json_and_as_the_whole_body_too(client: TestClient, maker: TaskMaker) -> None:
    wanted = features(embed(client, [maker.images[5]], task="birds", normalise="true"))
    body = {"images": [b64encode(maker.images[5]).decode()], "task": "birds", "normalise": True}
    (by_json,) = client.post("/v1/embed", json=body).json()["results"]
    by_body = client.post("/v1/embed", content=maker.images[5], params={"task": "birds", "normalise": "true"})
    np.testing.assert_allclose(by_json["embedding"], wanted, atol=1e-6)
    np.testing.assert_allclose(features(by_body), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"task": "bird"}, 404, r"unknown task 'bird'; did you mean birds.*"),
        ({"backbone": "resnet50"}, 404, r"unknown backbone 'resnet50'.*only the shared lane gives the features.*"),
        ({"backbone": "a", "task": "birds"}, 422, r"`backbone` means its plain features: send it, or a task; .*"),
        ({"backbone": ["a", "b"]}, 422, r"`backbone` is there 2 times: send it once; .*"),
        ({"normalise": "perhaps"}, 422, r"normalise: true or false, not 'perhaps'; .*"),
        ({"top_k": "3"}, 422, r"unknown field 'top_k'.*"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(
    client: TestClient, maker: TaskMaker, fields: dict[str, Any], status: int, said: str
) -> None:
    answer = embed(client, [maker.images[0]], **fields)
    assert (answer.status_code, "\n" in answer.json()["detail"]) == (status, False)
    assert re.fullmatch(said, answer.json()["detail"])


def test_a_lane_without_features_is_named(maker: TaskMaker, archives: Mapping[str, Archive]) -> None:
    with running(maker.root, folded="birds", prefetch=0) as client:
        answer = embed(client, [maker.images[0]], task="birds")
        said = "'birds' is served in the folded lane, which gives no features: serve it in the shared lane"
        assert (answer.status_code, answer.json()["detail"]) == (422, said)
        both = embed(client, [maker.images[0]], tasks="birds,cracks").json()["results"]
        assert both[0]["detail"] == said
        assert len(both[1]["embedding"]) == maker.backbone.embed_dim


def test_a_plain_backbone_needs_a_task_in_the_shared_lane(copied: Path, maker: TaskMaker) -> None:
    with changing(copied, folded="*", prefetch=0) as client:
        answer = embed(client, [maker.images[0]])
        assert answer.status_code == 404
        said = "no task is in the shared lane; only the shared lane gives the features of a plain backbone"
        assert answer.json()["detail"] == said


class Few:
    """Answers without a graph, and notes how it was asked."""

    asked: list[object]

    async def lease(self, tasks: Sequence[str], seconds: float, plain: bool) -> dict[str, Lease | RequestError]:
        """See `Backend`."""
        self.asked = [plain]
        lease = Lease("birds", "ab", ("a", "b"), Preprocess(size=(2, 2)), "shared", None, None, "vit-1")
        return {name: lease if name else RequestError(404, "none") for name in tasks}

    async def release(self, leases: Sequence[Lease]) -> None:
        """See `Backend`."""

    async def infer(self, asked: Sequence[tuple[Lease, Pixels]], seconds: float, unknown: bool) -> list[Outcome]:
        """See `Backend`."""
        self.asked += [unknown]
        row = np.array([0.25, 0.75], dtype=np.float32)
        return [Answered(row, 0.1, 0.2, 3, 0.5 if unknown else None, "why"), RequestError(503, "late", 1)]

    async def embed(
        self, asked: Sequence[tuple[Lease, Pixels]], seconds: float, plain: bool
    ) -> list[Embedded | RequestError]:
        """See `Backend`."""
        self.asked += [plain]
        return [Embedded(pixels.ravel()[:2].astype(np.float32), 0.1, 0.2, 3) for _, pixels in asked]


async def over_a_socket(socket: Path, local: Few) -> tuple[list[Outcome], list[Embedded | RequestError], Lease]:
    server, remote = InferenceServer(cast(Backend, local), socket), RemoteBackend(socket)
    await server.start()
    leases = await remote.lease(["vit", ""], 5, plain=True)
    lease = leases["vit"]
    assert isinstance(lease, Lease)
    assert str(leases[""]) == "none"
    pixels = [np.full((2, 2, 3), value, dtype=np.uint8) for value in (7, 9)]
    asked = [(lease, each) for each in pixels]
    outcomes = await remote.infer(asked, 5, unknown=True)
    embedded = await remote.embed(asked, 5, plain=True)
    await remote.release([lease])
    await remote.close()
    await server.close()
    return outcomes, embedded, lease


def test_other_workers_are_told_all_of_it(tmp_path: Path) -> None:
    local = Few()
    (answered, late), embedded, lease = asyncio.run(over_a_socket(tmp_path / "leader.sock", local))
    assert local.asked == [True, True, True]
    assert (lease.task, lease.backbone, lease.classes) == ("birds", "vit-1", ("a", "b"))
    assert isinstance(answered, Answered)
    assert (answered.unknown, answered.note, answered.batch) == (0.5, "why", 3)
    np.testing.assert_array_equal(answered.probabilities, np.array([0.25, 0.75], dtype=np.float32))
    assert isinstance(late, RequestError)
    assert (late.status, late.retry_after) == (503, 1)
    assert [each.features.tolist() for each in embedded if isinstance(each, Embedded)] == [[7, 7], [9, 9]]
