"""Ray Serve with multiplexed models: one replica holds an ONNX Runtime session per task."""

import asyncio
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peer_servers.common import CONCURRENT, Arguments, decode, tasks
from benchmarks.peer_servers.sessions import TaskSession

MOST = 1000
"""More models than there are tasks, so that none is dropped."""


class Classifier:
    """One replica."""

    def __init__(self, store: Path, quantised: bool) -> None:
        self.store, self.quantised = store, quantised
        self.pool = ThreadPoolExecutor(CONCURRENT)

    @serve.multiplexed(max_num_models_per_replica=MOST)  # type: ignore[untyped-decorator] # ray's types are not read
    async def session(self, task: str) -> TaskSession:
        """Open the session of a task; Ray keeps it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, TaskSession, self.store, task, self.quantised)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Classify the image in the body with the task that the header names."""
        content = await request.body()
        session = await self.session(serve.get_multiplexed_model_id())
        return await asyncio.get_running_loop().run_in_executor(self.pool, lambda: session.classify(decode(content)))


def main() -> None:
    """Serve until SIGTERM."""
    given = Arguments.read()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    ray.init(num_cpus=CONCURRENT, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    options = {"max_ongoing_requests": 256, "ray_actor_options": {"num_cpus": 1}}
    deployment = serve.deployment(**options)(Classifier)
    serve.run(deployment.bind(given.store, given.quantised), route_prefix="/classify")
    print(f"ready with {len(tasks(given.store))} tasks", flush=True)
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
