"""LitServe with torch and PEFT: one model with every task's LoRA adapter and head, and batches that mix tasks.

In fp32, or under autocast to bf16 where that is best.
"""

import base64
import contextlib
from typing import Any

import litserve
import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.peer_servers.common import Arguments, TaskFolder, decode, tasks
from benchmarks.peers_peft import ADAPTER, load_base

BATCH, WAIT_SECONDS = 16, 0.002


class Api(litserve.LitAPI):  # type: ignore[misc] # whether litserve is installed or not, its types are not read
    """Decodes, batches and answers in the one inference process."""

    def __init__(self, given: Arguments) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS, api_path="/classify")
        self.store, self.precision, self.weights = given.store, given.precision, given.weights

    def setup(self, device: str) -> None:
        """Load the backbone once and an adapter per task."""
        first, *others = tasks(self.store)
        self.tasks = {first: TaskFolder.read(self.store, first)}
        base = load_base(self.tasks[first].record, self.weights)
        self.model = PeftModel.from_pretrained(base, self.tasks[first].folder / ADAPTER, adapter_name=first)
        for task in others:
            self.add(task)
        self.model.eval()

    def add(self, task: str) -> None:
        """Load the adapter and the head of a task."""
        self.tasks[task] = TaskFolder.read(self.store, task)
        self.model.load_adapter(self.tasks[task].folder / ADAPTER, adapter_name=task)
        self.model.eval()

    def decode_request(self, request: dict[str, str]) -> tuple[str, Tensor]:
        """JSON with an image in base64 -> (task, pixels)."""
        task = request["task"]
        if task not in self.tasks:
            self.add(task)
        image = decode(base64.b64decode(request["image"]))
        return task, torch.from_numpy(self.tasks[task].input(image))

    def batch(self, inputs: list[tuple[str, Tensor]]) -> tuple[list[str], Tensor]:
        """Several requests as one batch."""
        return [task for task, _ in inputs], torch.cat([image for _, image in inputs])

    def predict(self, batch: tuple[list[str], Tensor]) -> list[tuple[str, Tensor]]:
        """(task, logits) of each image, by its own adapter."""
        names, images = batch
        cast = torch.autocast("cpu", torch.bfloat16) if self.precision == "best" else contextlib.nullcontext()
        with torch.inference_mode(), cast:
            logits = self.model(images, adapter_names=names)
        return list(zip(names, logits.float(), strict=True))

    def unbatch(self, output: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        """One output per request."""
        return output

    def encode_response(self, output: tuple[str, Tensor]) -> dict[str, Any]:
        """The likeliest class."""
        task, logits = output
        return self.tasks[task].answer(logits.numpy())


def main() -> None:
    """Serve until SIGTERM."""
    given = Arguments.read()
    server = litserve.LitServer(Api(given), accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=given.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
