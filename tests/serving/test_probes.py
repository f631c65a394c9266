"""Probes in the service: one pass of an image answers for all of them, whatever their heads read."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.graph_index import read_index
from mosa_deploy.bundles.probe_features import Features
from tests.support.app import changing, maker_on, named, passes, put, running, scores
from tests.support.host_gpu import write_engine
from tests.support.tasks import TaskMaker

PROBES: dict[str, Features] = {"mean": "cls+mean", "last": "blocks", "weighed": "attended", "weighed.b": "attended"}


def method_of(features: Features) -> str:
    return "attentive" if features == "attended" else "linear"


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory, maker: TaskMaker) -> TaskMaker:
    """A maker whose store has the tasks of the other one, and the graph of probes."""
    root = Path(shutil.copytree(maker.root, tmp_path_factory.mktemp("probes") / "store"))
    return maker_on(root, maker)


@pytest.fixture(scope="module")
def made(probes: TaskMaker) -> Mapping[str, Archive]:
    """Probes of every kind; in the maker's store they are not."""
    return {
        name: probes.make(name, seed, method=method_of(features), features=features)
        for seed, (name, features) in enumerate(PROBES.items(), start=3)
    }


@pytest.fixture(scope="module")
def client(probes: TaskMaker, made: Mapping[str, Archive]) -> Iterator[TestClient]:
    """The service with all of them, which nobody may change."""
    for archive in made.values():
        probes.store(archive)
    with running(probes.root) as client:
        yield client


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_answers_as_its_folded_graph_alone(
    client: TestClient, probes: TaskMaker, made: Mapping[str, Archive], name: str
) -> None:
    (wanted,) = probes.offline(made[name], [probes.images[5]])
    answer = client.post("/classify", files={"image": probes.images[5]}, data={"task": name, "top_k": "99"})
    assert scores(answer) == pytest.approx(named(made[name], wanted), abs=1e-5)
    assert client.get(f"/v1/tasks/{name}").json()["lane"] == "shared"


def test_a_probe_gives_the_features_that_its_head_reads(
    client: TestClient, probes: TaskMaker, made: Mapping[str, Archive]
) -> None:
    tasks = {"tasks": ["last", "weighed"]}
    with passes(client) as sizes:
        answer = client.post("/v1/embed", files={"image": probes.images[5]}, data=tasks).json()["results"]
    for each in answer:
        wanted = probes.features(made[each["task"]].bundle())[5]
        np.testing.assert_allclose(each["embedding"], wanted, atol=1e-4)
    assert sizes == [1]
    plain = client.post("/v1/embed", files={"image": probes.images[5]}).json()["embedding"]
    blocks = answer[0]["embedding"]
    np.testing.assert_allclose(plain, blocks[-2 * len(plain) : -len(plain)], atol=1e-4)


def test_all_probes_of_an_image_share_one_pass(client: TestClient, probes: TaskMaker) -> None:
    tasks = ["fields", "fields.b", *PROBES]
    with passes(client) as sizes:
        answer = client.post("/classify", files={"image": probes.images[5]}, data={"tasks": ",".join(tasks)})
    tops = [each["predictions"][0]["label"] for each in answer.json()["results"]]
    assert tops == ["class-7", "class-8", "class-8", "class-9", "class-10", "class-11"]
    assert sizes == [1]


def test_a_new_query_changes_no_answer_of_the_others(
    tmp_path: Path, probes: TaskMaker, made: Mapping[str, Archive]
) -> None:
    root = Path(shutil.copytree(probes.root, tmp_path / "store", ignore=shutil.ignore_patterns(*PROBES)))
    tasks = {name: made[name] for name in PROBES}
    with changing(root) as client:
        for name, archive in tasks.items():
            assert put(client, name, archive).status_code == 200
        for seed in range(3):
            more = probes.make("more", seed, method="attentive", features="attended")
            assert put(client, "more", more).status_code == 200
            assert scores_of(client, probes, "more") == pytest.approx(wanted(probes, more), abs=1e-5)
        for name, archive in tasks.items():
            assert scores_of(client, probes, name) == pytest.approx(wanted(probes, archive), abs=1e-5)


def test_a_probe_folds_from_the_plain_graph(tmp_path: Path, probes: TaskMaker, made: Mapping[str, Archive]) -> None:
    root = Path(shutil.copytree(probes.root, tmp_path / "store", ignore=shutil.ignore_patterns(*PROBES)))
    with changing(root) as client:
        for name in ("last", "weighed"):
            assert put(client, name, made[name], lane="folded").json()["lane"] == "folded"
            assert scores_of(client, probes, name) == pytest.approx(wanted(probes, made[name]), abs=1e-5)


def test_a_store_without_their_graph_says_what_writes_it_and_serves_what_it_had(
    copied: Path, probes: TaskMaker, made: Mapping[str, Archive]
) -> None:
    (folder,) = (copied / "backbones").iterdir()
    assert "shared-probes.onnx" not in read_index(folder).files
    with changing(copied) as client:
        refused = put(client, "last", made["last"])
        assert (refused.status_code, refused.json()["detail"]) == (
            422,
            f"{folder.name} has no shared-probes.onnx in the store: `mosa export --bundle RUN --out STORE` of a task of"
            " this kind writes it; or choose the folded lane",
        )
        answer = client.post("/classify", files={"image": probes.images[5]}, data={"tasks": "fields,fields.b"})
        assert [each["predictions"][0]["label"] for each in answer.json()["results"]] == ["class-7", "class-8"]


def scores_of(client: TestClient, probes: TaskMaker, name: str) -> dict[str, float]:
    answer = client.post("/classify", files={"image": probes.images[2]}, data={"task": name, "top_k": "99"})
    return scores(answer)


def wanted(probes: TaskMaker, archive: Archive) -> dict[str, float]:
    (row,) = probes.offline(archive, [probes.images[2]])
    return named(archive, row)


@pytest.mark.usefixtures("gpu")
def test_an_engine_answers_for_all_queries_too(tmp_path: Path, probes: TaskMaker, made: Mapping[str, Archive]) -> None:
    root = Path(shutil.copytree(probes.root, tmp_path / "store", ignore=shutil.ignore_patterns(*PROBES)))
    (graph,) = root.glob("backbones/*/shared-probes.onnx")
    write_engine(graph)
    with changing(root) as client:
        for name, archive in made.items():
            assert put(client, name, archive).json()["runtime"] == "tensorrt"
        for name, archive in made.items():
            assert scores_of(client, probes, name) == pytest.approx(wanted(probes, archive), abs=1e-5)
