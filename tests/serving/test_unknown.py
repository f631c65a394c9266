"""Answers say how unknown an image is, abstain above a threshold, and are counted for drift."""

import json
import re
import shutil
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from scipy.stats import kstest

from mosa_deploy.bundles.archive import Archive
from serving.drift import unevenness
from tests.support.app import changing, maker_on, put, running
from tests.support.statistics import KNOWN, reference_scores, with_statistics
from tests.support.tasks import TaskMaker

PLAIN = {"task", "predictions", "bundle", "milliseconds"}
"""What an answer has if nothing else is asked for."""

WINDOW = 8


@pytest.fixture(scope="module")
def told(maker: TaskMaker) -> Archive:
    """A task whose bundle has statistics."""
    return with_statistics(maker, maker.make("told", 2))


@pytest.fixture(scope="module")
def wanted(maker: TaskMaker, told: Archive) -> NDArray[np.float64]:
    """The reference's score of each of the maker's images, from the features of the task's folded graph."""
    bundle = told.bundle()
    assert bundle.statistics is not None
    return reference_scores(bundle.statistics, maker.features(bundle), maker.offline(told))


@pytest.fixture(scope="module")
def root(maker: TaskMaker, told: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with that task and others that have none."""
    store = Path(shutil.copytree(maker.root, tmp_path_factory.mktemp("unknown") / "store"))
    maker_on(store, maker).store(told)
    return store


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[TestClient]:
    """The service with all of them."""
    with running(root, drift_window=WINDOW) as client:
        yield client


def ask(client: TestClient, image: bytes, task: str = "told", **fields: str) -> dict[str, Any]:
    answer = client.post("/classify", files={"image": image}, data={"task": task, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_score_is_that_of_the_reference_in_float64(
    client: TestClient, maker: TaskMaker, wanted: NDArray[np.float64]
) -> None:
    found = [ask(client, image, unknown="true")["unknown"] for image in maker.images]
    assert found == pytest.approx(wanted.tolist(), abs=1e-3)
    assert max(found[:KNOWN]) < 0.06 < max(found[KNOWN:])


def test_an_answer_says_nothing_of_it_unless_it_is_asked(client: TestClient, maker: TaskMaker) -> None:
    assert ask(client, maker.images[0]).keys() == PLAIN
    assert ask(client, maker.images[0], unknown="false").keys() == PLAIN
    assert ask(client, maker.images[0], unknown="true").keys() == PLAIN | {"unknown"}


def test_above_the_threshold_no_class_is_answered(
    client: TestClient, maker: TaskMaker, wanted: NDArray[np.float64]
) -> None:
    near, far = int(wanted.argmin()), int(wanted.argmax())
    known = ask(client, maker.images[near], abstain="0.5")
    assert (known["abstained"], known["predictions"][0]["label"]) == (False, f"class-{near + 2}")
    unknown = ask(client, maker.images[far], abstain="0.5")
    assert (unknown["abstained"], unknown["predictions"]) == (True, [])
    assert unknown["unknown"] == pytest.approx(wanted[far], abs=1e-3)


def test_json_the_query_and_lists_ask_for_it_too(
    client: TestClient, maker: TaskMaker, wanted: NDArray[np.float64]
) -> None:
    texts = [b64encode(image).decode() for image in maker.images[6:10]]
    by_json = client.post("/classify", json={"images": texts, "task": "told", "unknown": True}).json()["results"]
    assert [each["unknown"] for each in by_json] == pytest.approx(wanted[6:10].tolist(), abs=1e-3)
    query = {"task": "told", "abstain": "0"}
    by_query = client.post("/classify", content=maker.images[9], params=query).json()
    assert by_query["abstained"] is True


def test_a_bundle_without_statistics_answers_without_it_and_says_so(client: TestClient, maker: TaskMaker) -> None:
    answer = ask(client, maker.images[3], "birds", abstain="0")
    assert answer.keys() == PLAIN | {"note"}
    assert answer["predictions"][0]["label"] == "class-3"
    assert answer["note"] == "the bundle of 'birds' has no statistics of its features: tune it again"


def test_the_folded_lane_answers_without_it_and_says_so(root: Path, maker: TaskMaker) -> None:
    with running(root, folded="told", prefetch=0) as client:
        answer = ask(client, maker.images[3], unknown="true")
        assert answer["note"] == "'told' is served in the folded lane, which gives no features"
        assert client.get("/v1/tasks/told").json()["unknown"] is False


def test_the_list_of_tasks_says_which_ones_can_tell(client: TestClient) -> None:
    tasks = client.get("/v1/tasks").json()["tasks"]
    assert [each["task"] for each in tasks if each["unknown"]] == ["told"]


@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan", "much", ""])
def test_a_threshold_outside_0_to_1_is_refused(client: TestClient, maker: TaskMaker, value: str) -> None:
    for fields, query in (({"abstain": value}, {}), ({}, {"abstain": value})):
        data = {"task": "told", **fields}
        answer = client.post("/classify", files={"image": maker.images[0]}, data=data, params=query)
        assert answer.status_code == 422, answer.text
        assert re.match(r"abstain: Input should be .*; this works: curl", answer.json()["detail"])


@pytest.mark.parametrize("value", [1.5, -0.1, "0.5", True])
def test_json_with_such_a_threshold_is_refused(client: TestClient, maker: TaskMaker, value: object) -> None:
    body = {"image": b64encode(maker.images[0]).decode(), "task": "told", "abstain": value}
    answer = client.post("/classify", content=json.dumps(body))
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("abstain: Input should be")


def test_what_is_neither_true_nor_false_is_refused(client: TestClient, maker: TaskMaker) -> None:
    answer = client.post("/classify", files={"image": maker.images[0]}, data={"task": "told", "unknown": "maybe"})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("unknown: true or false, not 'maybe'")


def series(client: TestClient, task: str) -> Mapping[str, float]:
    """Name -> value of what is measured of a task's drift."""
    found = re.findall(rf'^(mosa_drift\w*)\{{task="{task}"\}} (\S+)$', client.get("/metrics").text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_drift_is_measured_over_windows(root: Path, maker: TaskMaker, wanted: NDArray[np.float64]) -> None:
    with running(root, drift_window=WINDOW, prefetch=0) as client:
        before = series(client, "told")
        for image in maker.images[:WINDOW]:
            ask(client, image)
        known = series(client, "told")
        for image in maker.images[WINDOW:]:
            ask(client, image)
        others = series(client, "told")
    assert known["mosa_drift"] == pytest.approx(kstest(wanted[:WINDOW], "uniform").statistic, abs=1e-3)
    assert others["mosa_drift"] == pytest.approx(kstest(wanted[WINDOW:], "uniform").statistic, abs=1e-3)
    assert others["mosa_drift"] < 0.3 < known["mosa_drift"]
    counted = others["mosa_drift_images_total"] - before.get("mosa_drift_images_total", 0)
    above = others["mosa_drift_unknown_images_total"] - before.get("mosa_drift_unknown_images_total", 0)
    assert (counted, above) == (2 * WINDOW, (wanted > 0.95).sum())


def test_a_new_version_begins_a_window_of_its_own(root: Path, maker: TaskMaker, told: Archive, tmp_path: Path) -> None:
    again = with_statistics(maker, maker.make("told", 5))
    with changing(shutil.copytree(root, tmp_path / "store"), drift_window=WINDOW, prefetch=0) as client:
        before = series(client, "told").get("mosa_drift_images_total", 0)
        for image in maker.images[: WINDOW - 1]:
            ask(client, image)
        assert put(client, "told", again).status_code == 200
        ask(client, maker.images[0])
        assert series(client, "told").get("mosa_drift_images_total", 0) == before
        for image in maker.images[1:WINDOW]:
            ask(client, image)
        assert series(client, "told")["mosa_drift_images_total"] == before + WINDOW


def test_a_window_of_0_measures_nothing(root: Path, maker: TaskMaker) -> None:
    with running(root, drift_window=0, prefetch=0) as client:
        before = series(client, "told")
        for image in maker.images:
            ask(client, image)
        assert series(client, "told") == before


@pytest.mark.parametrize("count", [1, 7, 256])
def test_unevenness_is_the_statistic_of_kolmogorov_and_smirnov(count: int) -> None:
    scores = np.random.default_rng(count).beta(2, 1, count)
    assert unevenness(scores) == pytest.approx(kstest(scores, "uniform").statistic)
