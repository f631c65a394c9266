"""Export a bundle: `python -m export --bundle runs/digits --out artifacts`.

Merges the task, folds it into the backbone's traced graph, and proves on the canary that nothing changed. The trace is
made once for a backbone; folding takes numpy alone.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import onnx
import tyro

from export.calibration import read_calibration
from export.engine_files import choose_build
from export.formats import fp32_file, write_formats
from export.graphs import STAND_IN_CLASSES, node_types, trace_backbone
from export.lanes import Lane, shared_lane
from export.options import FileOptions
from export.overview import overview
from export.parity import Chain, table
from mosa_deploy import fold_graph
from mosa_deploy.attach import task_state
from mosa_deploy.backbone import Weights, load_backbone
from mosa_deploy.bundle import Bundle, Record
from mosa_deploy.errors import command
from mosa_deploy.files import replacing_folder, sha256, write_text
from mosa_deploy.fold import fold
from mosa_deploy.graph import PlainGraph, graph_file
from mosa_deploy.merge import merge
from mosa_deploy.restore import restore
from mosa_deploy.store import FOLDED, GRAPH, PARITY, SHARED, TIMINGS, Store


@dataclass(frozen=True)
class ExportConfig:
    """Merge and fold a tuned task, and write the graph that is served."""

    bundle: Path
    """The run's folder, with adapter.safetensors and adapter.json."""
    out: Path = Path("artifacts")
    """The store's root."""
    backbone_weights: Path | None = None
    """The file that the task was tuned on, if it was tuned on one."""
    files: Annotated[FileOptions, tyro.conf.arg(name="")] = field(default_factory=FileOptions)


def export(config: ExportConfig) -> Path:
    """Write the task into the store and return its folder.

    Raises:
        MosaError: the bundle, the backbone or the calibration does not fit, an engine cannot be built, or parity is
            broken; the store stays as it was.
    """
    build = choose_build(config.files, config.out / TIMINGS)
    bundle = Bundle.load(config.bundle)
    record = bundle.record
    calibration = read_calibration(config.bundle, record.preprocess) if "int8" in config.files.precisions else None
    weights = Weights("file", config.backbone_weights) if config.backbone_weights else None
    model = restore(bundle, weights)
    store = Store(config.out)
    chain = Chain(bundle)
    chain.add_model("expectation", model)
    chain.add_model("merged", merge(model))
    chain.add_model("folded", fold(model))
    chain.require()
    graph = plain_graph(store, record, weights)
    target = store.task(record.task)
    with replacing_folder(target) as aside:
        onnx.save(fold_graph.fold(graph, bundle), aside / FOLDED)
        chain.add_graph("folded ONNX", aside / FOLDED)
        shared = graph_file(store.backbone(record.backbone), graph.index, SHARED)
        chain.add_shared("shared ONNX", shared)
        print(table(chain.links))
        chain.require()
        written = []
        for lane in (Lane("folded", aside / FOLDED), shared_lane(shared, bundle)):
            written += [fp32_file(lane, chain), *write_formats(lane, config.files.precisions, chain, calibration)]
            if build is not None:
                written += build.write(lane, config.files.precisions, chain)
        print(overview(written, target))
        tensors = {name: value.numpy() for name, value in task_state(model).items()}
        merged = Bundle(record.model_copy(update={"form": "merged"}), tensors, bundle.canary).save(aside)
        report = chain.report() | {"bundle": merged.digest, "folded_sha256": sha256(aside / FOLDED)}
        write_text(aside / PARITY, json.dumps(report, indent=2) + "\n")
    nodes = sum(node_types(target / FOLDED).values()), len(graph.model.graph.node)
    print(f"{target / FOLDED}: {nodes[0]} nodes, plain has {nodes[1]}; merged bundle {merged.digest[:12]}")
    return target


def plain_graph(store: Store, record: Record, weights: Weights | None) -> PlainGraph:
    """The backbone's graph of the store; traced where it is not there yet.

    Raises:
        StoreError: it was altered since.
    """
    folder = store.backbone(record.backbone)
    if not (folder / GRAPH).is_file():
        print(f"tracing {record.backbone.name}, once for all its tasks", flush=True)
        used = weights or Weights(record.backbone.source)
        model = load_backbone(record.backbone.name, used, STAND_IN_CLASSES, img_size=record.preprocess.size)
        trace_backbone(model, record.backbone.sha256, folder)
    return PlainGraph.load(folder)


@command
def main() -> None:
    """The command line."""
    export(tyro.cli(ExportConfig, prog="python -m export"))


if __name__ == "__main__":
    main()
