"""The spans of requests, by OpenTelemetry's SDK. Loaded only while something asks for traces, see `serving.tracing`.

The service runs batches without spans, and notes when each part began and ended. Spans of a batch are made of that
once it has run, by the process that ran it, and outside of the thread that runs batches.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from socket import gethostname
from typing import TYPE_CHECKING, Any, Self, TypeVar

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

from mosa_deploy import __version__
from serving.backend import Lease
from serving.items import BatchRun, Item

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Token

T = TypeVar("T")

Attributes = Mapping[str, AttributeValue]

SERVICE = "mosa-deploy"

METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"}
"""Others are `_OTHER`, so that no client can invent one."""


class RequestSpan:
    """The span of a request. It is the current one until it ends, in the same task."""

    def __init__(self, span: Span, token: "Token[Context]", method: str) -> None:
        self._span, self._token, self._method = span, token, method
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    def end(self, route: str | None, status: int) -> None:
        """End it with the template of its route and its status; 0 means that the sender disconnected."""
        span, method = self._span, "HTTP" if self._method == "_OTHER" else self._method
        if route:
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))
        span.end()
        context.detach(self._token)


class Spans:
    """Makes spans of requests, and sends them where a provider says."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("mosa_deploy", __version__)

    @classmethod
    def to(cls, exporters: Iterable[SpanExporter]) -> Self:
        """Send spans with these, in batches. The SDK reads the sampler and the limits from the environment itself."""
        own: dict[str, AttributeValue] = {
            "service.name": SERVICE,
            "service.version": __version__,
            "host.name": gethostname(),
            "process.pid": os.getpid(),
        }
        provider = TracerProvider(resource=Resource.create(own).merge(OTELResourceDetector().detect()))
        for each in exporters:
            provider.add_span_processor(BatchSpanProcessor(each))
        return cls(provider)

    def begin(self, scope: Scope) -> RequestSpan:
        """Begin the span of a request, and make it the current one. It goes on with the trace of its sender."""
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        # BentoML's layers have spans of their own, which nothing collects: none of them is the parent.
        parent = propagate.extract(headers, Context())
        attributes = request_attributes(scope, method, headers)
        name = "HTTP" if method == "_OTHER" else method
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        return RequestSpan(span, context.attach(trace.set_span_in_context(span, parent)), method)

    def loading(self, tasks: Sequence[str]) -> AbstractContextManager[object]:
        """See `serving.tracing.loading`."""
        return self._tracer.start_as_current_span("load", attributes={"mosa.tasks": tasks})

    def decoding(self, work: Callable[[], T], size: int) -> Callable[[], T]:
        """The same work, of an image of so many bytes, in a span of the request that asks now."""
        if not _sampled():
            return work
        parent, attributes = context.get_current(), {"mosa.image.bytes": size}

        def traced() -> T:
            with self._tracer.start_as_current_span("decode", parent, attributes=attributes):
                return work()

        return traced

    def carrier(self) -> dict[str, str]:
        """The current request's trace, for another process."""
        found = dict[str, str]()
        propagate.inject(found)
        return found

    @contextmanager
    def carried(self, carrier: Mapping[str, str]) -> "Iterator[None]":
        """Go on with the trace that another process carried here."""
        token = context.attach(propagate.extract(carrier, Context()))
        try:
            yield
        finally:
            context.detach(token)

    def mark(self, items: Iterable[Item]) -> None:
        """Note which request asks for images, before they are queued."""
        if _sampled():
            here = trace.get_current_span().get_span_context()
            for item in items:
                item.trace = here

    def ran(self, asked: Sequence[tuple[Lease, Item]]) -> None:
        """Make the spans of a request's images after they ran: of each of their batches, or of those that had none."""
        groups: dict[tuple[object, BatchRun | None], list[tuple[Lease, Item]]] = {}
        for lease, item in asked:
            if item.trace is not None:
                groups.setdefault((item.lane, item.batch), []).append((lease, item))
        for (_, batch), group in groups.items():
            self._ran(batch, group)

    def _ran(self, batch: BatchRun | None, group: Sequence[tuple[Lease, Item]]) -> None:
        """The spans of images that one batch ran; without a batch, of images that never ran."""
        items = {id(item): item for _, item in group}.values()
        attributes: dict[str, AttributeValue] = {
            "mosa.lane": group[0][1].lane.kind,
            "mosa.tasks": sorted({lease.task for lease, _ in group}),
            "mosa.bundles": sorted({lease.digest for lease, _ in group}),
            "mosa.images": len(items),
        }
        queued = self._span("queue", min(item.entered for item in items), attributes)
        if batch is None:
            queued.set_status(Status(StatusCode.ERROR, "the images did not run"))
            queued.end()
            return
        queued.end(_nanoseconds(batch.start))
        attributes |= {"mosa.batch.images": batch.images, "mosa.batch.size": batch.size}
        own = trace.get_current_span().get_span_context().span_id
        others = {each.span_id: each for each in batch.traces if isinstance(each, SpanContext)}
        links = [Link(other) for span, other in others.items() if span != own]
        whole = self._span("batch", batch.start, attributes, links)
        inside = trace.set_span_in_context(whole)
        self._span("graph", batch.ready, attributes, parent=inside).end(_nanoseconds(batch.end))
        whole.end(_nanoseconds(batch.end))

    def _span(
        self, name: str, start: float, attributes: Attributes, links: Sequence[Link] = (), parent: Context | None = None
    ) -> Span:
        return self._tracer.start_span(name, parent, attributes=attributes, links=links, start_time=_nanoseconds(start))


def request_attributes(scope: Scope, method: str, headers: Mapping[str, str]) -> dict[str, AttributeValue]:
    """What is known of a request when it comes, by OpenTelemetry's names for HTTP.

    Neither the query nor a header that may hold a key is among them.
    """
    server, client = scope.get("server") or ("", None), scope.get("client") or ("", None)
    found: dict[str, Any] = {
        "http.request.method": method,
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version"),
        "server.address": server[0],
        "server.port": server[1],
        "client.address": client[0],
        "user_agent.original": headers.get("user-agent"),
    }
    return {name: value for name, value in found.items() if value}


def _sampled() -> bool:
    """Whether the current request's spans are sent."""
    return trace.get_current_span().get_span_context().trace_flags.sampled


def _nanoseconds(moment: float) -> int:
    """A moment on the clock of `time.monotonic` -> nanoseconds since 1970."""
    return time.time_ns() + round(1e9 * (moment - time.monotonic()))
