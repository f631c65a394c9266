"""OpenVINO behind FastAPI, one compiled model per task. OpenVINO's own model server is in no package registry."""

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import openvino
import uvicorn
from fastapi import Body, FastAPI

from benchmarks.peer_servers.common import CONCURRENT, Arguments, TaskFolder, decode, tasks


class CompiledTask:
    """A task's compiled model, with one infer request per thread."""

    def __init__(self, store: Path, task: str, quantised: bool, hints: Mapping[str, str]) -> None:
        self.task = TaskFolder.read(store, task)
        self.compiled: Any = openvino.Core().compile_model(self.task.graph(quantised), "CPU", dict(hints))
        self.local = threading.local()

    def classify(self, content: bytes) -> dict[str, Any]:
        """The answer for one encoded image."""
        if not hasattr(self.local, "request"):
            self.local.request = self.compiled.create_infer_request()
        self.local.request.infer([self.task.input(decode(content))])
        return self.task.answer(self.local.request.get_output_tensor(0).data)


def create_app(given: Arguments) -> FastAPI:
    """The app; every model is compiled before it starts."""
    hints = {"PERFORMANCE_HINT": given.variant.upper() or "THROUGHPUT"}
    # Without the hint, OpenVINO takes bf16 where the CPU has it.
    if given.precision == "fp32":
        hints["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = {task: CompiledTask(given.store, task, given.quantised, hints) for task in tasks(given.store)}
    pool, lock, app = ThreadPoolExecutor(CONCURRENT), threading.Lock(), FastAPI()

    def answer(task: str, content: bytes) -> dict[str, Any]:
        with lock:
            if task not in compiled:
                compiled[task] = CompiledTask(given.store, task, given.quantised, hints)
        return compiled[task].classify(content)

    @app.post("/classify")
    async def classify(task: str, content: Annotated[bytes, Body(media_type="image/jpeg")]) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(pool, answer, task, content)

    return app


def main() -> None:
    """Serve until SIGTERM."""
    given = Arguments.read()
    uvicorn.run(create_app(given), host="127.0.0.1", port=given.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
