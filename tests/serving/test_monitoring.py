"""The dashboard for Grafana and the alerts for Prometheus, by themselves and with a real Prometheus that scrapes us."""

import itertools
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from mosa_deploy.bundles.archive import Archive
from serving import metrics
from tests.support.app import backend_of, running
from tests.support.service import Server, serve
from tests.support.statistics import with_statistics
from tests.support.tasks import TaskMaker, picture
from tests.support.waiting import wait_for
from tests.support.walker import ROOT

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "mosa.json").read_text())
FOLDER = ROOT / "deploy" / "prometheus"
ALERTS = {rule["alert"]: rule for rule in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}

prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="no Prometheus on this machine: apt-get install prometheus",
)


def ours() -> set[str]:
    """The names of all series that we make."""
    kinds = [each for each in vars(metrics).values() if hasattr(each, "_type") and hasattr(each, "_name")]
    assert len(kinds) > 10
    return {each._name + suffix for each in kinds for suffix in SUFFIXES[each._type]}


def named(expression: str) -> set[str]:
    """The metrics in an expression."""
    return {*re.findall(r"\b(?:mosa_\w+|up)\b", re.sub(r'"[^"]*"', "", expression))}


def test_every_metric_of_dashboard_and_alerts_is_one_of_ours() -> None:
    for where, expression in [*TARGETS, *((name, rule["expr"]) for name, rule in ALERTS.items())]:
        found = named(expression)
        assert found, where
        assert found <= ours() | {"up"}, where


def test_the_dashboard_shows_all_that_we_count() -> None:
    shown = {name for _, expression in TARGETS for name in named(expression)}
    parts = r"_(total|bucket|sum|count)$"
    assert {re.sub(parts, "", name) for name in ours()} == {re.sub(parts, "", name) for name in shown}


def test_the_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len({*cells}) == len(cells)
    assert {x for x, _ in cells} == {*range(24)}


def test_panels_say_what_they_show_and_take_their_source_from_the_variable() -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [source] * (
            1 + len(panel["targets"])
        )
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    used = {name for _, expression in TARGETS for name in re.findall(r"\$(\w+)", expression)}
    assert used == {*variables} - {"datasource"} | {"__rate_interval"}
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Now", "Traffic", "Latency", "Errors", "Queue and batches", "Lanes", "Tasks", "Drift"]


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    page = (ROOT / "docs" / "operate.md").read_text()
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["for"]
        assert {*rule["annotations"]} == {"summary", "description"}
        assert f"`{name}`" in page


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    tests = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
    told = [case for test in tests for case in test["promql_expr_test"]]
    for name in ALERTS:
        cases = [case for case in told if f'"{name}"' in case["expr"]]
        fires = [case for case in cases if case.get("exp_samples")]
        # Silent at some time, or silent for one of several series.
        assert fires, name
        assert len(fires) < len(cases) or any(several(test, name) for test in tests), name


def several(test: Mapping[str, Any], name: str) -> bool:
    """Whether fewer alerts of a name fire in a test than there are instances or tasks."""
    (case,) = [case for case in test["promql_expr_test"] if f'"{name}"' in case["expr"]] or [None]
    labels = {tuple(re.findall(r'(?:instance|task)="\w+"', each["series"])) for each in test["input_series"]}
    return case is not None and len(case["exp_samples"]) < len(labels)


def test_the_metrics_say_whether_it_is_ready_and_how_many_may_wait(copied: Path) -> None:
    with running(copied, queue=77) as client:
        assert (value(client, "mosa_ready"), value(client, "mosa_queue_limit")) == (1, 77)
        backend_of(client).batcher.broken = "CUDA error 719"
        assert value(client, "mosa_ready") == 0


def value(client: TestClient, name: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    (sample,) = [sample for family in families if family.name == name for sample in family.samples]
    return sample.value


@pytest.mark.slow
@prometheus
@pytest.mark.parametrize(
    "command",
    [("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml"), ("test", "rules", "alerts.test.yml")],
)
def test_promtool_finds_nothing_wrong(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@contextmanager
def scraping(server: Server, folder: Path) -> Iterator[httpx.Client]:
    """A Prometheus with our own configuration, which scrapes the server every second; yields a client of it."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [server.address.removeprefix("http://")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(FOLDER / "alerts.yml", folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def query(client: httpx.Client, expression: str) -> list[Any]:
    """What Prometheus answers now. Grafana's variables stand for all jobs and services, and for a minute."""
    for name, meant in (("$__rate_interval", "1m"), ("$job", ".*"), ("$instance", ".*")):
        expression = expression.replace(name, meant)
    try:
        answer = client.get("/api/v1/query", params={"query": expression})
    except httpx.ConnectError:
        return []
    if answer.status_code == 503:
        return []
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    found: list[Any] = answer.json()["data"]["result"]
    return found


def use(server: Server, maker: TaskMaker, seconds: float) -> None:
    """Ask for so long: several tasks, more than fit, embeddings, and what is refused."""
    end = time.monotonic() + seconds
    for turn in itertools.count():
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda i: server.classify("birds", maker.images[i]), range(4)))
        assert {answer.status_code for answer in answers} == {200}
        for task, status in (("cracks", 200), ("fields", 200), ("grains", 200), ("nowhere", 404), ("fields.b", 503)):
            assert server.classify(task, picture(turn)).status_code == status
        assert server.classify("birds", b"no image").status_code == 415
        files = {"image": maker.images[0]}
        embedded = httpx.post(f"{server.address}/v1/embed", files=files, data={"task": "birds"}, timeout=60)
        assert embedded.status_code == 200
        if time.monotonic() > end:
            return


@pytest.mark.slow
@prometheus
def test_a_real_prometheus_answers_every_expression_from_what_we_serve(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path: Path
) -> None:
    store = Path(shutil.copytree(maker.root, tmp_path / "store"))
    TaskMaker(store, maker.name, maker.images).store(with_statistics(maker, archives["birds"]))
    record = store / "tasks" / "fields.b" / "adapter.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "temperature": 9.0}))
    # `birds` is always asked last, and has a window of drift every other turn.
    with serve(store, tmp_path, threads=1, active=2, drift_window=8) as server, scraping(server, tmp_path) as client:
        server.wait_until("ready")
        wait_for(lambda: bool(query(client, "mosa_ready == 1")), 60)
        use(server, maker, 5)
        wait_for(lambda: bool(query(client, "rate(mosa_drift_images_total[1m]) > 0")), 30)
        empty = [(title, each) for title, each in TARGETS if not query(client, each)]
        assert not empty
        waited = float(query(client, 'sum(mosa_requests_total{route="/classify", status="200"})')[0]["value"][1])
        assert waited > 8
        rules = client.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in rules} == dict.fromkeys(
        ALERTS, ("ok", "")
    )
    assert {rule["name"] for rule in rules if rule["state"] == "firing"} == set()
