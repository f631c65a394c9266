"""Export a bundle: `mosa export --bundle runs/digits --out artifacts`.

Merges the task, folds it into the backbone's traced graph, and proves on the canary and on validation images that
nothing changed. The trace is made once for a backbone; folding takes numpy alone.
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import onnx

from export.engine_files import Build, choose_build
from export.formats import FORMATS, Limit, LossError, Written, fp32_file, write_format
from export.int8 import require_enough
from export.options import ExportConfig, FileOptions
from export.overview import overview
from export.parity import BY_RUNNER, Chain, table
from export.replacing import Replaced
from export.sharing import one_at_a_time
from export.targets import ExportTarget
from export.trace import STAND_IN_CLASSES, node_types, trace_backbone, trace_layout, write_onnx
from mosa_deploy.adapters.attach import task_state
from mosa_deploy.adapters.fold import fold
from mosa_deploy.adapters.merge import merge
from mosa_deploy.adapters.probe import Probe, TunedModel
from mosa_deploy.adapters.restore import load_recorded, restore
from mosa_deploy.backbones.load import Weights
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import read_samples
from mosa_deploy.bundles.gate import pack_images
from mosa_deploy.bundles.graph_index import graph_file, read_index
from mosa_deploy.bundles.record import RECORD, Record
from mosa_deploy.bundles.store_layout import FOLDED, GRAPH, PARITY, TIMINGS, UNFOLDED, VALIDATION, StoreLayout
from mosa_deploy.bundles.validation import PREFIX, read_validation
from mosa_deploy.graphs.adapter_weights import Layout, choose_layout
from mosa_deploy.graphs.backbone_graph import PlainGraph
from mosa_deploy.graphs.fold import fold_bundle
from mosa_deploy.runtimes.names import DEFAULT_RUNNER
from mosa_deploy.runtimes.runner import check_runner, open_runner
from mosa_deploy.runtimes.shared import SharedTask
from mosa_deploy.utils.files import replacing_folder, sha256, write_bytes, write_text


def export(config: ExportConfig) -> Path:
    """Write the task into the store and return its folder.

    Raises:
        LossError: an int8 file loses too much accuracy; it alone is not written.
        MosaError: the bundle, the backbone or the calibration does not fit, the store serves what may not be replaced,
            an engine cannot be built, or parity is broken; the store stays as it was.
    """
    build = choose_build(config.files, config.out / TIMINGS)
    for name in config.runners:
        check_runner(name)
    bundle = Bundle.load(config.bundle)
    record = bundle.record
    samples = read_samples(config.bundle, record.preprocess.size)
    if "int8" in config.files.precisions:
        require_enough(samples, config.bundle)
    weights = Weights("file", config.backbone_weights) if config.backbone_weights else None
    store = StoreLayout(config.out)
    replaced = Replaced.find(store, record, config.new_classes, config.replace_upload)
    model = restore(bundle, weights)
    chain = Chain(bundle, samples, config.parity_images)
    chain.add_model("expectation", model)
    chain.add_model("merged", merge(model))
    chain.require()
    folder = store.task(record.task)
    with replacing_folder(folder) as aside:
        if record.sequential:
            targets = write_unfolded(chain, model, aside)
        else:
            targets = write_folded(chain, model, aside, store, weights)
        for target in targets:
            add_runners(chain, target, config.runners)
        print(table(chain.links))
        chain.require()
        written, refused = list[Written](), list[str]()
        for target in targets:
            with one_at_a_time(config.out) if target.shared else nullcontext():
                write_files(target, chain, config.files, build, written, refused)
        print(overview(written, folder, len(chain.samples.labels)))
        file = targets[0].path.name
        merged = merged_bundle(bundle, model).save(aside)
        report = chain.report() | {"bundle": merged.digest, f"{Path(file).stem}_sha256": sha256(aside / file)}
        report["files"] = {each.path.name: each.proof().model_dump() for each in written}
        write_text(aside / PARITY, json.dumps(report, indent=2) + "\n")
        write_validation(config.bundle, record, aside)
        replaced.keep()
        replaced.write_note(aside, Archive((aside / RECORD).read_bytes(), b"").key)
    print(f"{folder / file}: {node_types(folder / file).total()} nodes; merged bundle {merged.digest[:12]}")
    if refused:
        raise LossError("; ".join(refused))
    return folder


def write_files(
    target: ExportTarget,
    chain: Chain,
    options: FileOptions,
    build: Build | None,
    written: list[Written],
    refused: list[str],
) -> None:
    """Write the files of a target in every precision; add them to `written`, and why one is missing to `refused`.

    Raises:
        ParityError: a file differs too much.
    """
    fp32 = fp32_file(target, chain)
    written.append(fp32)
    limit = Limit(options.max_accuracy_loss, fp32.accuracy, len(chain.samples.labels))
    for precision in options.precisions:
        for name in FORMATS[precision]:
            try:
                written.append(write_format(target, precision, name, chain, limit))
            except LossError as loss:
                refused.append(str(loss))
    if build is not None:
        written += build.write(target, options.precisions, chain)


def write_folded(
    chain: Chain, model: TunedModel, folder: Path, store: StoreLayout, weights: Weights | None
) -> list[ExportTarget]:
    """Fold the task into the plain graph's weights; add that, and the shared graph, to the chain."""
    bundle = chain.bundle
    if not isinstance(model, Probe):
        chain.add_model("folded", fold(model))
        chain.require()
    backbone = store.backbone(bundle.record.backbone)
    with one_at_a_time(store.root):
        graph = plain_graph(backbone, bundle.record, weights)
    onnx.save(fold_bundle(graph, bundle), folder / FOLDED)
    targets = [ExportTarget("folded", folder / FOLDED)]
    if not bundle.record.tunes_backbone:
        layout = choose_layout(bundle.record, graph.index.files)
        shared = graph_file(backbone, graph.index, layout.file)
        targets.append(ExportTarget("shared", shared, SharedTask.alone(bundle, layout)))
    for target in targets:
        chain.add_target(target)
    print(f"the plain graph has {len(graph.model.graph.node)} nodes")
    return targets


def add_runners(chain: Chain, target: ExportTarget, names: Sequence[str]) -> None:
    """Compare a graph by other runners with the default one, which proved it already."""
    for name, tolerance in BY_RUNNER.items():
        if name in names and name != DEFAULT_RUNNER:
            logits = chain.answers(f"{target.name} by {name}", target.answer_by(open_runner(target.path, name)))
            chain.branch(chain.compare(target.stage, f"{target.name} by {name}", logits, tolerance))


def write_unfolded(chain: Chain, model: TunedModel, folder: Path) -> list[ExportTarget]:
    """Trace the task with its adapters as nodes of their own, and add that to the chain."""
    adapter = chain.bundle.record.adapter
    assert adapter is not None
    assert not isinstance(model, Probe)
    print(f"{adapter.style} adapters cannot fold: tracing the task with nodes of its own", flush=True)
    write_onnx(model, folder / UNFOLDED)
    target = ExportTarget("unfolded", folder / UNFOLDED)
    chain.add_target(target)
    return [target]


def merged_bundle(bundle: Bundle, model: TunedModel) -> Bundle:
    """The bundle with the tensors of the merged model; one that tuned the backbone itself stays as it is."""
    if bundle.record.tunes_backbone:
        return bundle
    tensors = {name: value.numpy() for name, value in task_state(model).items()}
    return replace(bundle, record=bundle.record.model_copy(update={"form": "merged"}), tensors=tensors)


def write_validation(source: Path, record: Record, folder: Path) -> None:
    """Keep the validation images beside the bundle in `source` with the exported task, if there are any."""
    images = read_validation(source, record)
    if images:
        write_bytes(folder / VALIDATION, pack_images(images, PREFIX))
        note = ", as JPEG" if images[0].name.endswith(".jpg") else ""
        print(f"{len(images)} validation images travel with the task{note}")


def plain_graph(folder: Path, record: Record, weights: Weights | None) -> PlainGraph:
    """The backbone's graph in its folder of the store; it and the task's shared graph are traced if they are not there.

    Raises:
        StoreError: it was altered since.
    """
    known = read_index(folder).files if (folder / GRAPH).is_file() else {}
    # A task that tuned the backbone itself has no adapter weights, but the folder is for the others too.
    wanted = Layout(record.backbone.topology) if record.tunes_backbone else choose_layout(record, known)
    if wanted.file not in known:
        print(f"tracing {record.backbone.name}, once for all its tasks of this kind", flush=True)
        used = weights or Weights(record.backbone.source)
        model = load_recorded(record, used, STAND_IN_CLASSES)
        if known:
            trace_layout(model, folder, wanted)
        else:
            trace_backbone(model, record.backbone.sha256, folder, wanted)
    return PlainGraph.load(folder)
