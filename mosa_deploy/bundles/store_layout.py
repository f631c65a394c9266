"""The store: the folder of what is exported and served.

backbones/<name>-<sha8>/   plain.onnx shared.onnx shared-qkv.onnx ... graph.json
tasks/<task>/              adapter.safetensors adapter.json folded.onnx (or unfolded.onnx) parity.json

Beside each graph but the plain one lie what was made of it: .fp16.onnx, .int8.onnx, .int8-tensorrt.onnx, and engines,
.<precision>.<capability>.engine, with one engine.json a folder.
"""

from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.bundles.record import RECORD, Backbone
from mosa_deploy.errors import StoreError

PLAIN, GRAPH = "plain.onnx", "graph.json"
FOLDED, UNFOLDED, PARITY = "folded.onnx", "unfolded.onnx", "parity.json"
TIMINGS = "timings.cache"
"""TensorRT's, at the root: what its builds have timed on this machine's GPU."""


@dataclass(frozen=True)
class StoreLayout:
    """Where things lie below `root`."""

    root: Path

    def backbone(self, backbone: Backbone) -> Path:
        """The folder of what every task on this backbone shares."""
        return self.root / "backbones" / backbone.folder

    def task(self, name: str) -> Path:
        """The folder of one task."""
        return self.root / "tasks" / name

    def tasks(self) -> list[str]:
        """The names of the tasks, sorted.

        Raises:
            StoreError: there is no store, or nothing in it.
        """
        names = sorted(record.parent.name for record in self.root.glob(f"tasks/[a-z]*/{RECORD}"))
        if not names:
            raise StoreError(f"no task in {self.root}/tasks: write one with `python -m export --out {self.root}`")
        return names
