"""Traces of requests, as OpenTelemetry's own SDK and wire format hold them."""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanKind, StatusCode

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.errors import ConfigError, MosaError, ProviderError
from serving import tracing
from serving.spans import Spans
from tests.support.app import backend_of, running
from tests.support.otlp import Collector, attributes, collecting
from tests.support.service import Server, serve
from tests.support.tasks import TaskMaker, picture
from tests.support.waiting import wait_for
from tests.support.walker import new_modules

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT, UNSENT = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"

Finished = Callable[[], dict[str, list[ReadableSpan]]]


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> Finished:
    """Turns tracing on; returns what says the spans that have ended, by their names."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(tracing, "spans", Spans(provider))

    def spans() -> dict[str, list[ReadableSpan]]:
        found: dict[str, list[ReadableSpan]] = {}
        for span in kept.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found

    return spans


def classify(client: TestClient, task: str = "birds", content: bytes | None = None, **headers: str) -> Any:
    files = {"image": content or picture()}
    return client.post("/classify", files=files, data={"task": task}, headers=headers)


def span_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def test_a_request_is_one_trace_that_goes_on_with_its_sender_s(
    client: TestClient, archives: Mapping[str, Archive], finished: Finished
) -> None:
    assert classify(client, traceparent=SENT).status_code == 200
    spans = {name: span for name, (span,) in finished().items()}
    whole = spans["POST /classify"]
    assert whole.kind is SpanKind.SERVER
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert {f"{span.context.trace_id:032x}" for span in spans.values() if span.context} == {TRACE}
    parents = {name: span.parent.span_id for name, span in spans.items() if span.parent and span is not whole}
    assert parents.pop("graph") == span_of(spans["batch"])
    assert parents == dict.fromkeys(("load", "decode", "queue", "batch"), span_of(whole))
    assert dict(whole.attributes or {}).items() >= {
        ("http.request.method", "POST"),
        ("http.route", "/classify"),
        ("http.response.status_code", 200),
        ("url.path", "/classify"),
        ("url.scheme", "http"),
    }
    batch = dict(spans["batch"].attributes or {})
    assert batch == {
        "mosa.lane": "shared",
        "mosa.tasks": ("birds",),
        "mosa.bundles": (archives["birds"].bundle().digest,),
        "mosa.images": 1,
        "mosa.batch.images": 1,
        "mosa.batch.size": 1,
    }
    assert spans["decode"].attributes == {"mosa.image.bytes": len(picture())}
    assert not spans["batch"].links


def test_the_parts_of_a_trace_follow_each_other(client: TestClient, finished: Finished) -> None:
    classify(client)
    spans = {name: times(span) for name, (span,) in finished().items()}
    first, last = spans["POST /classify"]
    # Moments on the clock of the batcher are turned into dates one by one, each to within what that takes.
    slack = 1_000_000
    order = [first, *spans["load"], *spans["decode"], *spans["queue"], *spans["batch"], last]
    assert all(later - earlier > -slack for earlier, later in pairwise(order))
    (begun, ended), (start, end) = spans["graph"], spans["batch"]
    assert begun > start - slack
    assert abs(ended - end) < slack
    assert abs(spans["queue"][1] - start) < slack
    assert last - first < 60e9


def test_images_of_several_requests_in_a_batch_are_linked(copied: Path, finished: Finished) -> None:
    with running(copied) as client, ThreadPoolExecutor(2) as pool:
        batcher, gate = backend_of(client).batcher, threading.Event()
        for task in ("birds", "cracks"):
            classify(client, task)
        before = {span_of(span) for span in finished()["batch"]}
        batcher.call(lambda: gate.wait(30))
        asked = [pool.submit(classify, client, task) for task in ("birds", "cracks")]
        wait_for(lambda: batcher.waiting == 2)
        gate.set()
        assert [each.result().status_code for each in asked] == [200, 200]
        wait_for(lambda: len(finished()["POST /classify"]) == 4)
    batches = [span for span in finished()["batch"] if span_of(span) not in before]
    assert sorted(dict(span.attributes or {})["mosa.tasks"] for span in batches) == [("birds",), ("cracks",)]  # type: ignore[type-var] # attributes are of many types
    assert [dict(span.attributes or {})["mosa.batch.images"] for span in batches] == [2, 2]
    one, other = batches
    assert one.parent is not None
    assert other.parent is not None
    assert [link.context.span_id for link in one.links] == [other.parent.span_id]
    assert [link.context.span_id for link in other.links] == [one.parent.span_id]


def test_tasks_that_share_a_pass_share_its_spans(client: TestClient, finished: Finished) -> None:
    answer = client.post("/classify", files={"image": picture()}, data={"tasks": "fields,fields.b,birds"})
    assert answer.status_code == 200
    (queue,) = finished()["queue"]
    assert dict(queue.attributes or {}).items() >= {
        ("mosa.tasks", ("birds", "fields", "fields.b")),
        ("mosa.images", 2),
    }
    assert len(finished()["decode"]) == 1


def test_what_goes_wrong_is_seen_where_it_does(copied: Path, finished: Finished) -> None:
    with running(copied, deadline_s=0.3) as client:
        assert classify(client, content=b"no image").status_code == 415
        (whole,), (decode,) = finished()["POST /classify"], finished()["decode"]
        # By OpenTelemetry's conventions what the sender did wrong is no error of the server.
        assert (whole.status.status_code, decode.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
        gate = threading.Event()
        backend_of(client).batcher.call(lambda: gate.wait(30))
        assert classify(client).status_code == 504
        gate.set()
    (queue,), whole = finished()["queue"], finished()["POST /classify"][-1]
    assert (queue.status.status_code, queue.status.description) == (StatusCode.ERROR, "the images did not run")
    assert (whole.status.status_code, dict(whole.attributes or {})["error.type"]) == (StatusCode.ERROR, "504")
    assert "batch" not in finished()


def test_a_stranger_s_paths_and_methods_name_no_span(client: TestClient, finished: Finished) -> None:
    client.get("/nowhere/1", params={"key": "secret"}, headers={"authorization": "Bearer secret"})
    client.request("BREW", "/classify")
    client.get("/metrics")
    (unknown,), (brewed,) = finished()["GET"], finished()["HTTP /classify"]
    assert dict(brewed.attributes or {})["http.request.method"] == "_OTHER"
    assert "secret" not in unknown.to_json()
    assert len(finished()) == 2


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(each.getMessage()) for each in caplog.records if each.name == "mosa_deploy.requests"]


def test_what_its_sender_does_not_sample_has_no_spans_but_its_trace_in_the_log(
    client: TestClient, finished: Finished, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mosa_deploy.requests")
    assert classify(client, traceparent=UNSENT).status_code == 200
    assert finished() == {}
    assert [line["trace_id"] for line in logged(caplog)] == [TRACE]


def test_without_tracing_no_span_is_made(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a span is made")

    for kind in (Span, NonRecordingSpan):
        monkeypatch.setattr(kind, "__init__", refuse)
    caplog.set_level(logging.INFO, "mosa_deploy.requests")
    assert tracing.spans is None
    assert classify(client, traceparent=SENT).status_code == 200
    assert "trace_id" not in logged(caplog)[0]


def test_without_tracing_the_sdk_is_not_loaded() -> None:
    modules = "serving.app, serving.local_backend, serving.remote_backend, serving.inference_server"
    # FastAPI itself loads the API.
    loaded = new_modules(f"import {modules}; assert not {{'serving.spans', 'opentelemetry.sdk'}} & {{*sys.modules}}")
    assert "serving" in loaded


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Variables are set for one test, and tracing ends with it."""
    yield monkeypatch
    tracing.close()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "vision"}, None),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, None),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp_proto_http"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "otlp_proto_http"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, "otlp_proto_http"),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, "otlp_proto_http, console"),
    ],
)
def test_opentelemetry_s_variables_say_where_traces_go(
    environment: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name, value in given.items():
        environment.setenv(name, value)
    assert tracing.configure() == expected
    assert (tracing.spans is not None) == (expected is not None)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "smoke"}, ConfigError, r"OTEL_TRACES_EXPORTER=smoke: .*known: console, none, otlp"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "morse"}, ConfigError, "OTEL_EXPORTER_OTLP_PROTOCOL=morse: not one of http/"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ProviderError, "pip install opentelemetry-exporter-otlp-proto-grpc"),
        ({"OTEL_TRACES_SAMPLER": "often"}, ConfigError, "OTEL_TRACES_SAMPLER=often: not one of always_on"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"},
            ConfigError,
            "OTEL_TRACES_SAMPLER_ARG=7: not a ratio from 0 to 1",
        ),
        ({"OTEL_PROPAGATORS": "pigeon"}, ConfigError, "OTEL_PROPAGATORS=pigeon: not installed; known: "),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "few"}, ConfigError, "traces cannot be sent by otlp_proto_http"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(
    environment: pytest.MonkeyPatch, given: dict[str, str], error: type[MosaError], message: str
) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for name, value in given.items():
        environment.setenv(name, value)
    with pytest.raises(error, match=message):
        tracing.configure()
    assert tracing.spans is None


def test_a_name_of_one_s_own_stands_for_the_service(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_TRACES_EXPORTER", "console")
    assert Spans.to([]).provider.resource.attributes["service.name"] == "mosa-deploy"
    environment.setenv("OTEL_SERVICE_NAME", "vision")
    assert Spans.to([]).provider.resource.attributes["service.name"] == "vision"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def ask_both_workers(server: Server, maker: TaskMaker, collector: Collector) -> None:
    """Classify until the spans of requests have come from two processes."""

    def ask(i: int) -> None:
        files, headers = {"image": maker.images[i % 16]}, {"traceparent": f"00-{i + 1:032x}-{PARENT}-01"}
        answer = httpx.post(f"{server.address}/classify", files=files, data={"task": "birds"}, headers=headers)
        assert answer.status_code == 200

    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            list(pool.map(ask, range(20 * turn, 20 * turn + 20)))
            wait_for(lambda end=20 * turn + 20: len(collector.named("POST /classify")) == end, 30)  # type: ignore[misc] # a default is no annotation
            if len({found.process for found in collector.named("POST /classify")}) == 2:
                return
    raise AssertionError("one worker answered all requests")


@pytest.mark.slow
def test_a_collector_gets_whole_traces_of_both_workers(
    maker: TaskMaker,
    archives: Mapping[str, Archive],
    collector: Collector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vision")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with serve(maker.root, tmp_path, threads=1, workers=2) as server:
        server.wait_until("ready")
        ask_both_workers(server, maker, collector)
        requests = {found.span.trace_id: found for found in collector.named("POST /classify")}
        wait_for(lambda: all(len(collector.named(name)) >= len(requests) for name in ("decode", "queue", "graph")), 30)
        lines = {str(line["trace_id"]) for line in server.lines() if line["route"] == "/classify"}
    assert lines == {trace.hex() for trace in requests}
    assert {int(trace.hex(), 16) for trace in requests} == {*range(1, len(requests) + 1)}
    assert {found.span.parent_span_id.hex() for found in requests.values()} == {PARENT}
    assert {found.service for found in collector.spans} == {"vision"}
    batches = {found.span.trace_id: found for found in collector.named("batch")}
    assert {found.process for found in batches.values()} < {found.process for found in requests.values()}
    assert all(batches[trace].span.parent_span_id == found.span.span_id for trace, found in requests.items())
    for graph in collector.named("graph"):
        assert graph.span.parent_span_id == batches[graph.span.trace_id].span.span_id
        assert attributes(graph.span)["mosa.bundles"] == [archives["birds"].bundle().digest]


@pytest.mark.slow
def test_traces_that_cannot_be_sent_stop_the_start_in_one_line(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "smoke")
    with serve(maker.root, tmp_path) as server:
        server.wait_until("error: OTEL_TRACES_EXPORTER=smoke: no such exporter is installed")
        assert server.process.wait(30) == 2
        assert "Traceback" not in server.log.read_text()
