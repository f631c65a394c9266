"""Export a bundle: `python -m export --bundle runs/digits --out artifacts`.

Merges and folds the task, writes its graph beside the merged bundle, and proves on the canary that nothing changed.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from export.graphs import STAND_IN_CLASSES, node_types, write_onnx
from export.parity import Chain, table
from mosa_deploy.attach import task_state
from mosa_deploy.backbone import Weights, load_backbone
from mosa_deploy.bundle import Bundle
from mosa_deploy.errors import command
from mosa_deploy.files import replacing_folder, sha256, write_text
from mosa_deploy.fold import fold
from mosa_deploy.merge import merge
from mosa_deploy.restore import restore
from mosa_deploy.store import FOLDED, PARITY, PLAIN, Store


@dataclass(frozen=True)
class ExportConfig:
    """Merge and fold a tuned task, and write the graph that is served."""

    bundle: Path
    """The run's folder, with adapter.safetensors and adapter.json."""
    out: Path = Path("artifacts")
    """The store's root."""
    backbone_weights: Path | None = None
    """The file that the task was tuned on, if it was tuned on one."""


def export(config: ExportConfig) -> Path:
    """Write the task into the store and return its folder.

    Raises:
        MosaError: the bundle or the backbone does not fit, or parity is broken; the store stays as it was.
    """
    bundle = Bundle.load(config.bundle)
    record = bundle.record
    weights = Weights("file", config.backbone_weights) if config.backbone_weights else None
    model = restore(bundle, weights)
    store = Store(config.out)
    plain = store.backbone(record.backbone) / PLAIN

    chain = Chain(bundle)
    chain.add_model("expectation", model)
    chain.add_model("merged", merge(model))
    folded = fold(model)
    chain.add_model("folded", folded)
    target = store.task(record.task)
    with replacing_folder(target) as aside:
        print(f"tracing the folded graph of {record.task}", flush=True)
        write_onnx(folded, aside / FOLDED)
        chain.add_graph("ONNX", aside / FOLDED)
        print(table(chain.links))
        chain.require()
        if not plain.is_file():
            print(f"tracing the plain backbone {record.backbone.name}", flush=True)
            used = weights or Weights(record.backbone.source)
            write_onnx(load_backbone(record.backbone.name, used, STAND_IN_CLASSES), plain)
        tensors = {name: value.numpy() for name, value in task_state(model).items()}
        merged = Bundle(record.model_copy(update={"form": "merged"}), tensors, bundle.canary).save(aside)
        report = chain.report() | {"bundle": merged.digest, "folded_sha256": sha256(aside / FOLDED)}
        write_text(aside / PARITY, json.dumps(report, indent=2) + "\n")
    nodes = {path.stem: sum(node_types(path).values()) for path in (plain, target / FOLDED)}
    print(f"{target / FOLDED}: {nodes['folded']} nodes, plain has {nodes['plain']}; merged bundle {merged.digest[:12]}")
    return target


@command
def main() -> None:
    """The command line."""
    export(tyro.cli(ExportConfig, prog="python -m export"))


if __name__ == "__main__":
    main()
