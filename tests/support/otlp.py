"""A collector of traces: OTLP over HTTP, decoded by OpenTelemetry's own protocol buffers."""

import gzip
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Collected:
    """A span, and the resource that sent it."""

    span: Span
    service: str
    process: int


@dataclass
class Collector:
    """What came so far, and where to send it."""

    address: str = ""
    spans: list[Collected] = field(default_factory=list)

    def named(self, name: str) -> list[Collected]:
        """The spans of a name."""
        return [each for each in self.spans if each.span.name == name]

    def take(self, content: bytes) -> None:
        """Add what a request holds."""
        for group in ExportTraceServiceRequest.FromString(content).resource_spans:
            resource = attributes(group.resource)
            for scope in group.scope_spans:
                self.spans += [
                    Collected(span, resource["service.name"], resource["process.pid"]) for span in scope.spans
                ]


def attributes(holder: Any) -> Mapping[str, Any]:
    """The attributes of a span or a resource."""
    return {each.key: value(each.value) for each in holder.attributes}


def value(found: AnyValue) -> Any:
    """What an attribute holds."""
    kind = found.WhichOneof("value")
    if kind == "array_value":
        return [value(each) for each in found.array_value.values]
    return getattr(found, str(kind))


@contextmanager
def collecting() -> Iterator[Collector]:
    """Listen on a port of this machine; yields what collects."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            good = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if good:
                collector.take(body)
            self.send_response(200 if good else 400)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
