"""The store: the folder of everything that is exported and served. Its names are written here and nowhere else.

    backbones/<name>-<sha8>/   plain.onnx shared.onnx shared-qkv.onnx shared-ssf.onnx ... graph.json
    tasks/<task>/              adapter.safetensors adapter.json folded.onnx (or unfolded.onnx) parity.json export.json
                               validation.zip
    uploads/<key>.mosa         versions that came by HTTP, named by the sha256 of their record
    decisions/<task>@<n>.json  which version is served, which others are kept, pin, lane; the highest n holds
    gates/<task>.zip           labelled images on which a new version must not be worse than the served one
    agreements/<key>.json      how many of a version's validation images each graph answers rightly
    measured/<machine>.json    how long a service's machine takes for each file of a backbone's graphs

The graphs in other precisions lie beside each fp32 graph except the plain one: .fp16.onnx, .int8.onnx and
.int8-tensorrt.onnx. So do engines, .<precision>.<capability>.engine, with one engine.json per folder.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.bundles.record import RECORD, Backbone
from mosa_deploy.errors import StoreError

BACKBONES, TASKS, UPLOADS, DECISIONS, GATES = "backbones", "tasks", "uploads", "decisions", "gates"
AGREEMENTS, MEASURED = "agreements", "measured"

PLAIN, GRAPH = "plain.onnx", "graph.json"
FOLDED, UNFOLDED, PARITY = "folded.onnx", "unfolded.onnx", "parity.json"
EXPORT_NOTE = "export.json"
VALIDATION = "validation.zip"
"""The validation images of an exported task, if its run kept any."""
ENGINES = "engine.json"
TIMINGS = "timings.cache"
"""The kernel timings of TensorRT's builds on this machine's GPU, at the root of the store."""


def format_file(graph: Path, name: str) -> Path:
    """The path of a graph in another format, such as int8; fp32 is the graph itself."""
    return graph if name == "fp32" else graph.with_suffix(f".{name}.onnx")


def backbone_folder(backbone: Backbone) -> str:
    """Path below the root of what every task on this backbone shares."""
    return f"{BACKBONES}/{backbone.folder}"


def task_folder(task: str) -> str:
    """Path below the root of an exported task."""
    return f"{TASKS}/{task}"


def upload_file(key: str) -> str:
    """Path below the root of an uploaded version."""
    return f"{UPLOADS}/{key}.mosa"


def decision_file(task: str, revision: int) -> str:
    """Path below the root of what the operator decided about a task. Revision 0 is of a release that did not count."""
    return f"{DECISIONS}/{task}@{revision}.json" if revision else f"{DECISIONS}/{task}.json"


def decision_revisions(names: Iterable[str]) -> dict[str, list[int]]:
    """Task -> its revisions, from the names in the folder of decisions. The highest one holds."""
    found: dict[str, list[int]] = {}
    for name in names:
        task, _, revision = name.removesuffix(".json").partition("@")
        if name.endswith(".json") and (revision or "0").isdecimal():
            found.setdefault(task, []).append(int(revision or 0))
    return found


def gate_file(task: str) -> str:
    """Path below the root of a task's labelled images."""
    return f"{GATES}/{task}.zip"


def agreement_file(key: str) -> str:
    """Path below the root of what the graphs of a version answered on its validation images."""
    return f"{AGREEMENTS}/{key}.json"


def measured_file(machine: str) -> str:
    """Path below the root of the times that a machine took."""
    return f"{MEASURED}/{machine}.json"


@dataclass(frozen=True)
class StoreLayout:
    """The paths of a store in a folder of this machine."""

    root: Path

    def backbone(self, backbone: Backbone) -> Path:
        """The folder of what every task on this backbone shares."""
        return self.root / backbone_folder(backbone)

    def task(self, name: str) -> Path:
        """The folder of an exported task."""
        return self.root / task_folder(name)

    def decision(self, name: str) -> Path | None:
        """The decision that holds for a task; None if there is none."""
        revisions = decision_revisions(path.name for path in self.root.glob(f"{DECISIONS}/*")).get(name)
        return self.root / decision_file(name, max(revisions)) if revisions else None

    def tasks(self) -> list[str]:
        """The names of the exported tasks, sorted.

        Raises:
            StoreError: there is no store, or no task in it.
        """
        names = sorted(record.parent.name for record in self.root.glob(f"{TASKS}/[a-z]*/{RECORD}"))
        if not names:
            raise StoreError(f"no task in {self.root}/{TASKS}: write one with `mosa export --out {self.root}`")
        return names
