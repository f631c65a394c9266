"""Traces of requests by OpenTelemetry, if its own variables `OTEL_...` ask for them.

    POST /classify                       SERVER; goes on with the trace of a `traceparent` header
    ├── load                             until every version is held
    ├── decode                           one per image, in its thread
    ├── queue                            until the images were taken into a batch
    └── batch ── graph                   preparing and running it; linked to the other requests in it

While nothing asks for traces `spans` is None: OpenTelemetry's SDK is not loaded, and no span is made.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from mosa_deploy.errors import ConfigError, ProviderError

if TYPE_CHECKING:
    from serving.spans import Spans

spans: "Spans | None" = None
"""What makes spans in this process."""

PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""The values of `OTEL_EXPORTER_OTLP_PROTOCOL`, and the exporter of each."""

PACKAGES = {
    "otlp_proto_http": "pip install 'mosa-deploy[otel]'",
    "otlp_proto_grpc": "pip install opentelemetry-exporter-otlp-proto-grpc",
}

SAMPLERS = ("always_on", "always_off", "traceidratio")

NOTHING = nullcontext()


def configure() -> str | None:
    """Begin to trace if the environment asks for it; says to what, or None.

    Raises:
        ConfigError: a variable cannot be read.
        ProviderError: an exporter is not installed.
    """
    global spans
    if not (found := exporters()):
        return None
    from serving.spans import Spans

    names = ", ".join(each.name for each in found)
    try:
        spans = Spans.to([each.load()() for each in found])
    except (ImportError, ValueError) as fault:
        raise ConfigError(f"traces cannot be sent by {names}, as the variables OTEL_... say: {fault}") from None
    return names


def close() -> None:
    """Send what is not sent yet, and trace no more."""
    global spans
    if spans:
        spans.provider.shutdown()
    spans = None


def loading(tasks: Sequence[str]) -> AbstractContextManager[object]:
    """The span in which a request waits until it holds its tasks' versions."""
    return spans.loading(tasks) if spans else NOTHING


def carried(carrier: Mapping[str, str] | None) -> AbstractContextManager[object]:
    """Go on with the trace of a request that another worker received."""
    return spans.carried(carrier) if spans and carrier else NOTHING


def exporters() -> list[EntryPoint]:
    """What the environment sends traces with, by the names of OpenTelemetry's specification; empty for none.

    `OTEL_TRACES_EXPORTER` names exporters. Without it an endpoint means OTLP.

    Raises:
        ConfigError, ProviderError: see `configure`.
    """
    if _given("OTEL_SDK_DISABLED").lower() == "true":
        return []
    endpoint = _given("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or _given("OTEL_EXPORTER_OTLP_ENDPOINT")
    value = _given("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    names = [name.strip() for name in value.split(",")]
    if "none" in names:
        return []
    _check_sampler()
    _check_propagators()
    return [_exporter(_protocol() if name == "otlp" else name) for name in names]


def _given(name: str) -> str:
    return os.environ.get(name, "").strip()


def _protocol() -> str:
    """The exporter of the protocol that OTLP goes by."""
    name = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    name = name if _given(name) else "OTEL_EXPORTER_OTLP_PROTOCOL"
    value = _given(name) or "http/protobuf"
    if value not in PROTOCOLS:
        raise ConfigError(f"{name}={value}: not one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[value]


def _exporter(name: str) -> EntryPoint:
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        return found
    if name in PACKAGES:
        raise ProviderError(f"traces are to be sent, and the exporter {name} is not installed: {PACKAGES[name]}")
    known = sorted({"otlp", "none", *entry_points(group="opentelemetry_traces_exporter").names} - {*PACKAGES})
    raise ConfigError(f"OTEL_TRACES_EXPORTER={name}: no such exporter is installed; known: {', '.join(known)}")


def _check_sampler() -> None:
    """Refuse what OpenTelemetry would replace by `parentbased_always_on`, or by a ratio of 1, with a warning."""
    name, ratio = _given("OTEL_TRACES_SAMPLER").lower(), _given("OTEL_TRACES_SAMPLER_ARG")
    kind = name.removeprefix("parentbased_")
    if name and kind not in SAMPLERS:
        known = [prefix + each for each in SAMPLERS for prefix in ("", "parentbased_")]
        raise ConfigError(f"OTEL_TRACES_SAMPLER={name}: not one of {', '.join(known)}")
    if kind == "traceidratio":
        try:
            good = 0 <= float(ratio or "1") <= 1
        except ValueError:
            good = False
        if not good:
            raise ConfigError(f"OTEL_TRACES_SAMPLER_ARG={ratio}: not a ratio from 0 to 1")


def _check_propagators() -> None:
    known = {"none", *entry_points(group="opentelemetry_propagator").names}
    for name in filter(None, map(str.strip, _given("OTEL_PROPAGATORS").split(","))):
        if name not in known:
            raise ConfigError(f"OTEL_PROPAGATORS={name}: not installed; known: {', '.join(sorted(known))}")
