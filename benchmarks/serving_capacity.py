"""Parts of `benchmarks.serving` on capacity: how many tasks the service holds, and how fast it accepts new ones."""

import asyncio
import time
from pathlib import Path

import httpx
import numpy as np
from scipy import stats

from benchmarks.serving_speed import Figures
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.errors import ServiceError
from tests.support.load import classify, closed
from tests.support.service import KEY, Server, serve
from tests.support.tasks import TaskMaker, renamed

ADMIN = {"authorization": f"Bearer {KEY}"}
SETTLE_SECONDS = 1.0


def memory(folder: Path, bottleneck: int, registered: int, active: int, step: int) -> Figures:
    """Measure the memory that each active task adds to a service with many registered tasks.

    The tasks are activated one after the other by a request. The first one also opens the session, so the slope is
    fitted to the tasks after it.
    """
    maker = TaskMaker(folder / "store")
    archive = maker.make("task", bottleneck=bottleneck)
    for t in range(registered):
        maker.store(renamed(archive, f"task-{t}"))
    tensors = archive.bundle().tensors
    of_tensors = sum(np.asarray(value).nbytes for value in tensors.values())
    with serve(maker.root, folder, prefetch=0, active=registered) as server:
        server.wait_until("ready")
        none, points = server.memory(), list[tuple[int, int]]()
        for t in range(active):
            checked(server.classify(f"task-{t}", maker.images[0]))
            if t % step == 0 or t == active - 1:
                time.sleep(SETTLE_SECONDS)
                points.append((t + 1, server.memory()))
        state = httpx.get(f"{server.address}/v1/tasks", timeout=30).json()["tasks"]
    counts, bytes_ = np.array(points).T
    slope = float(stats.linregress(counts, bytes_).slope)
    return {
        "bottleneck": bottleneck,
        "registered": len(state),
        "active": sum(each["state"] == "active" for each in state),
        "MB with none active": none / 1e6,
        "MB with one": points[0][1] / 1e6,
        f"MB with {active}": points[-1][1] / 1e6,
        "KB of a task's tensors": of_tensors / 1e3,
        "KB an active task": slope / 1e3,
        "ratio": slope / of_tensors,
    }


def hot_add(folder: Path, registered: int, added: int) -> Figures:
    """Measure the time from the first byte of an upload to the first answer of the new task."""
    maker = TaskMaker(folder / "store")
    archive = maker.make("task", bottleneck=16)
    for t in range(registered):
        maker.store(renamed(archive, f"task-{t}"))
    uploads = [renamed(archive, f"new-{t}").pack() for t in range(added)]
    times = []
    with serve(maker.root, folder, admin_keys=KEY, prefetch=100) as server:
        server.wait_until("ready")
        with httpx.Client(base_url=server.address, headers=ADMIN, timeout=60) as client:
            for t, content in enumerate(uploads):
                start = time.monotonic()
                checked(client.put(f"/v1/tasks/new-{t}", content=content))
                files, data = {"image": ("image.png", maker.images[0])}, {"task": f"new-{t}"}
                checked(client.post("/classify", files=files, data=data))
                times.append(1000 * (time.monotonic() - start))
    p50, p99 = np.percentile(times, (50, 99))
    return {"registered": registered, "added": added, "p50 ms": p50, "p99 ms": p99, "largest ms": max(times)}


def workers(folder: Path, uploads: int, requests: int) -> Figures:
    """Count answers of two workers that are not from the new version, starting 2 s after its upload was answered."""
    maker = TaskMaker(folder / "store")
    maker.store(maker.make("birds", 0))
    versions = [maker.make("birds", seed) for seed in range(1, uploads + 1)]
    old = 0
    with serve(maker.root, folder, admin_keys=KEY, workers=2) as server:
        server.wait_until("ready")
        count = len(server.workers())
        for version in versions:
            put(server, "birds", version)
            time.sleep(2)
            asks = [classify("birds", i % 16, maker.images[i % 16]) for i in range(requests)]
            replies = asyncio.run(closed(server.address, asks, in_flight=8))
            old += sum(reply.fields.get("bundle") != version.bundle().digest for reply in replies)
    return {"workers": count, "uploads": uploads, "requests": uploads * requests, "not of the new version": old}


def put(server: Server, name: str, version: Archive) -> None:
    """Upload a version."""
    checked(httpx.put(f"{server.address}/v1/tasks/{name}", content=version.pack(), headers=ADMIN, timeout=60))


def checked(response: httpx.Response) -> httpx.Response:
    """Return the response if it is a success.

    Raises:
        ServiceError: the service answered with an error.
    """
    if response.is_success:
        return response
    raise ServiceError(response.status_code, response.text)
