"""Tasks with the same adapter, as a joint run leaves them: one slot, several heads, one pass of an image for all."""

from collections.abc import Mapping

import numpy as np
import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.graphs.adapter_weights import adapter_weights, digest_of
from serving.lanes import SharedLane
from tests.support.app import backend_of, named, passes, put, scores, top
from tests.support.tasks import TaskMaker, packed


@pytest.fixture
def twin(archives: Mapping[str, Archive]) -> Archive:
    """A task with the adapter of `birds` and a head of its own: each image gets the class after."""
    bundle = archives["birds"].bundle()
    head = f"{bundle.record.backbone.topology.head}."
    tensors = {name: np.roll(value, 1, 0) if name.startswith(head) else value for name, value in bundle.tensors.items()}
    canary = Canary(bundle.canary.images, np.roll(bundle.canary.probabilities, 1, axis=1))
    return packed(Bundle(bundle.record.model_copy(update={"task": "twin"}), tensors, canary))


def slots(client: TestClient, task: str) -> tuple[SharedLane, int]:
    """The lane and the slot of a task."""
    backend = backend_of(client)
    held = backend.registry.acquire(task)
    backend.registry.release(held)
    assert isinstance(held.lane, SharedLane)
    return held.lane, held.slot


def finish(client: TestClient) -> None:
    """Wait until slots that are to be freed are free."""
    backend_of(client).batcher.call(lambda: None).result()


def test_tasks_with_one_adapter_share_a_slot_and_a_pass(
    admin: TestClient, maker: TaskMaker, archives: Mapping[str, Archive], twin: Archive
) -> None:
    lane, slot = slots(admin, "birds")
    before = len(lane.bank.free)
    assert put(admin, "twin", twin).status_code == 200
    assert slots(admin, "twin") == (lane, slot)
    assert len(lane.bank.free) == before
    with passes(admin) as sizes:
        answer = admin.post("/classify", files={"image": maker.images[5]}, data={"tasks": "birds,twin", "top_k": "99"})
    assert sizes == [1]
    for each, archive in zip(answer.json()["results"], (archives["birds"], twin), strict=True):
        found = {one["label"]: one["score"] for one in each["predictions"]}
        (wanted,) = maker.offline(archive, [maker.images[5]])
        assert found == pytest.approx(named(archive, wanted), abs=1e-5)


def test_the_slot_is_free_after_the_last_of_them(admin: TestClient, maker: TaskMaker, twin: Archive) -> None:
    lane, _ = slots(admin, "birds")
    before = len(lane.bank.free)
    put(admin, "twin", twin)
    admin.delete("/v1/tasks/birds")
    finish(admin)
    assert top(admin, "twin", maker.images[0])[0] == "class-1"
    assert len(lane.bank.free) == before
    admin.delete("/v1/tasks/twin")
    finish(admin)
    assert len(lane.bank.free) == before + 1


def test_another_adapter_has_another_slot(admin: TestClient, maker: TaskMaker, twin: Archive) -> None:
    put(admin, "twin", twin)
    _, slot = slots(admin, "twin")
    put(admin, "other", maker.make("other", 21))
    assert slots(admin, "other")[1] != slot
    wanted = named(twin, maker.offline(twin, [maker.images[3]])[0])
    answer = admin.post("/classify", files={"image": maker.images[3]}, data={"task": "twin", "top_k": "99"})
    assert scores(answer) == pytest.approx(wanted, abs=1e-5)


def test_the_digest_tells_values_and_shapes_apart(twin: Archive) -> None:
    weights = adapter_weights(twin.bundle())
    name, value = next(iter(weights.items()))
    odd = [{**weights, name: value + 1e-6}, {**weights, name: value.reshape(-1)}, dict(list(weights.items())[1:])]
    assert len({digest_of(each) for each in (weights, *odd)}) == 4
    assert digest_of(dict(reversed(weights.items()))) == digest_of(weights)
