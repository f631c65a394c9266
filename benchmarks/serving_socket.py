"""A part of `benchmarks.serving`: what it costs a worker to ask another one that infers, over their Unix socket.

The other process answers at once, without a graph, so all that is measured is the socket: three messages each way per
request, of which one holds the pixels.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import psutil
from uvicorn.loops.auto import auto_loop_factory

from benchmarks.serving_speed import Figures
from mosa_deploy.bundles.preprocess import Pixels, Preprocess
from mosa_deploy.errors import ServiceError
from serving.backend import Answered, Backend, Lease, Outcome
from serving.errors import RequestError
from serving.inference_server import InferenceServer
from serving.remote_backend import RemoteBackend

SIDES = (32, 224)
"""The heights and widths of the images, in pixels."""
CLASSES = tuple(f"class-{k}" for k in range(100))
TASK = "task"


class Instant:
    """Answers without a graph."""

    async def lease(self, tasks: Sequence[str], seconds: float, plain: bool) -> dict[str, Lease | RequestError]:
        """See `Backend`."""
        return {task: Lease(task, "0" * 64, CLASSES, Preprocess(size=(224, 224)), "shared", None) for task in tasks}

    async def release(self, leases: Sequence[Lease]) -> None:
        """See `Backend`."""

    async def infer(self, asked: Sequence[tuple[Lease, Pixels]], seconds: float, unknown: bool) -> list[Outcome]:
        """See `Backend`."""
        row = np.full(len(CLASSES), 1 / len(CLASSES), dtype=np.float32)
        return [Answered(row, 0.0, 0.0, 1) for _ in asked]


def lead(path: Path) -> None:
    """Offer a backend on a socket until this process is ended."""

    async def serve() -> None:
        await InferenceServer(cast(Backend, Instant()), path).start()
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(serve())


async def one(backend: Backend, pixels: Pixels) -> float:
    """The seconds of one request."""
    start = time.perf_counter()
    leases = await backend.lease([TASK], 30)
    (lease,) = leases.values()
    assert isinstance(lease, Lease)
    await backend.infer([(lease, pixels)], 30)
    await backend.release([lease])
    return time.perf_counter() - start


async def many(backend: Backend, pixels: Pixels, requests: int, in_flight: int) -> list[float]:
    """The seconds of each request, with so many in flight."""
    waiting = iter(range(requests))

    async def sender() -> list[float]:
        return [await one(backend, pixels) for _ in waiting]

    return [seconds for each in await asyncio.gather(*(sender() for _ in range(in_flight))) for seconds in each]


def over_socket(folder: Path, requests: int, in_flight: int = 16) -> Figures:
    """Latency and processor time of a request over the socket, in both processes."""
    path = folder / "inference.sock"
    leader = multiprocessing.get_context("spawn").Process(target=lead, args=(path,), daemon=True)
    leader.start()
    assert leader.pid is not None
    processes = {"asking": psutil.Process(), "inferring": psutil.Process(leader.pid)}
    found: Figures = {"requests": requests, "in flight": in_flight}
    try:
        while not path.exists():
            if leader.exitcode is not None:
                raise ServiceError(503, f"the process that infers ended with {leader.exitcode}")
            time.sleep(0.05)
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            backend = RemoteBackend(path)
            for side in SIDES:
                pixels = np.zeros((side, side, 3), dtype=np.uint8)
                runner.run(many(backend, pixels, requests // 10 + 1, in_flight))
                alone = runner.run(many(backend, pixels, requests, in_flight=1))
                found[f"{side} px, p50 ms, alone"] = 1000 * float(np.median(alone))
                before = {name: cpu(process) for name, process in processes.items()}
                runner.run(many(backend, pixels, requests, in_flight))
                for name, process in processes.items():
                    spent = 1000 * (cpu(process) - before[name]) / requests
                    found[f"{side} px, CPU ms a request, worker {name}"] = spent
            runner.run(backend.close())
    finally:
        leader.terminate()
        leader.join()
    return found


def cpu(process: psutil.Process) -> float:
    """The processor time of a process in seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)
