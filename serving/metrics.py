"""Prometheus metrics. Labels are route templates and known tasks only, so that no client can make new series.

With several workers prometheus_client keeps the counts in files, and `/metrics` of any worker adds them up.
"""

import os
from collections.abc import Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from serving.items import Item

CONTENT_TYPE = CONTENT_TYPE_LATEST

PATH = "/metrics"

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

requests = Counter("mosa_requests", "Requests by route template and status", ["route", "method", "status"])
answers = Counter("mosa_answers", "Answers by task, lane and status", ["task", "lane", "status"])
embeddings = Counter("mosa_embeddings", "Embeddings by task, lane and status", ["task", "lane", "status"])
latency = Histogram("mosa_request_seconds", "Time from the first byte to the last", ["route"], buckets=SECONDS)
in_flight = Gauge("mosa_requests_in_flight", "Requests in work", multiprocess_mode="livesum")
batches = Histogram("mosa_batch_size", "Images of a batch", ["lane"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))
waits = Histogram("mosa_queue_seconds", "Time that a batch's first image waited", ["lane"], buckets=SECONDS)
runs = Histogram("mosa_inference_seconds", "Time of a batch in the graph", ["lane"], buckets=SECONDS)
queue = Gauge("mosa_queue_depth", "Images that wait", multiprocess_mode="livesum")
queue_limit = Gauge("mosa_queue_limit", "The most images that may wait", multiprocess_mode="livemax")
ready = Gauge("mosa_ready", "Whether the service may get traffic, as /readyz says", multiprocess_mode="livemostrecent")
loaded_tasks = Gauge("mosa_tasks_active", "Tasks that are loaded", multiprocess_mode="livesum")
loads = Counter("mosa_task_loads", "Tasks loaded and proved by their canary")
evictions = Counter("mosa_task_evictions", "Tasks that had to go for others")
scored = Counter("mosa_drift_images", "Images that were compared with a task's validation images", ["task"])
unfamiliar = Counter("mosa_drift_unknown_images", "Those of them that were more unknown than 95 % of these", ["task"])
drift = Gauge(
    "mosa_drift",
    "How differently the last window of a task's images is distributed, 0 to 1 (Kolmogorov-Smirnov)",
    ["task"],
    multiprocess_mode="mostrecent",
)


def batch(items: Sequence[Item]) -> None:
    """Count a batch that ran."""
    lane, run = items[0].lane.kind, items[0].batch
    assert run is not None
    batches.labels(lane).observe(run.images)
    waits.labels(lane).observe(run.start - items[0].entered)
    runs.labels(lane).observe(run.seconds)


def event(name: str) -> None:
    """Count a load or an eviction."""
    {"load": loads, "eviction": evictions}[name].inc()


def page() -> bytes:
    """The metrics of all workers, as Prometheus reads them."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # prometheus_client leaves it without types
    return generate_latest(registry)
