"""One ONNX Runtime session per task: what the peers hold that know nothing of adapters."""

import threading
from pathlib import Path
from typing import Any

import onnxruntime
from PIL import Image

from benchmarks.peer_servers.common import TaskFolder


class TaskSession:
    """A task's session. It takes all cores, and leaves them when it is idle."""

    def __init__(self, store: Path, task: str, quantised: bool) -> None:
        self.task = TaskFolder.read(store, task)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = str(self.task.graph(quantised))
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def classify(self, image: Image.Image) -> dict[str, Any]:
        """The answer for one image."""
        return self.task.answer(self.session.run(None, {self.input: self.task.input(image)})[0])


class Sessions:
    """The sessions of all tasks. A new task's is opened when it is first asked for."""

    def __init__(self, store: Path, tasks: list[str], quantised: bool) -> None:
        self.store, self.quantised, self.lock = store, quantised, threading.Lock()
        self.opened = {task: TaskSession(store, task, quantised) for task in tasks}

    def of(self, task: str) -> TaskSession:
        """The session of a task."""
        with self.lock:
            if task not in self.opened:
                self.opened[task] = TaskSession(self.store, task, self.quantised)
            return self.opened[task]
