"""Time the steps of an export: `python -m benchmarks.export --backbone vit_base_patch16_224`.

The weights and the parallel adapter are random, since the time depends on shapes alone. The first export of a backbone
traces its graphs, the next one only folds. Folding alone is timed too, with numpy, as the service does it.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import tyro

from export.export import export
from export.options import ExportConfig
from mosa_deploy.adapters.attach import adapters, attach, task_state
from mosa_deploy.adapters.restore import describe_backbone
from mosa_deploy.backbones.foldable import image_size
from mosa_deploy.backbones.load import Weights, load_backbone, randomise
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import Samples, write_samples
from mosa_deploy.bundles.canary import SIZE, Canary
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.preprocess import Array, Preprocess, probabilities
from mosa_deploy.bundles.record import Record
from mosa_deploy.bundles.store_layout import StoreLayout
from mosa_deploy.errors import command
from mosa_deploy.graphs.backbone_graph import PlainGraph
from mosa_deploy.graphs.fold import fold_bundle
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance

CLASSES = 10


@dataclass(frozen=True)
class Config:
    """Time the export of two tasks of one backbone."""

    backbone: str = "vit_base_patch16_224"
    bottleneck: int = 64
    calibration: int = 24
    """Number of images on which the stages are compared, besides the 8 of the canary."""
    out: Path = Path("benchmarks/results/export.md")


def write_task(folder: Path, config: Config, name: str, seed: int) -> Record:
    """Write a run of a random task: its merged bundle and calibration images. Returns its record."""
    model = load_backbone(config.backbone, Weights("random"))
    height, width = image_size(model)
    backbone = describe_backbone(config.backbone, "random", model)
    adapter = AdapterConfig(config.bottleneck, experts=1)
    model.reset_classifier(CLASSES)
    attach(model, adapter, split=False)
    for i, part in enumerate(adapters(model)):
        randomise(part, seed=seed + i)
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE + config.calibration, height, width, 3), dtype=np.uint8)
    preprocess = Preprocess(size=(height, width))

    def answer(images: Array) -> Array:
        with torch.inference_mode():
            return probabilities(model(torch.from_numpy(images)).numpy(), 1.0)

    record = Record(
        task=name,
        dataset="noise",
        backbone=backbone,
        method="adapter",
        form="merged",
        adapter=adapter,
        classes=tuple(map(str, range(CLASSES))),
        preprocess=preprocess,
        temperature=1.0,
        metrics={},
        seed=seed,
        versions={},
        git_commit=None,
    )
    canary = Canary.record([encode(image) for image in noise[:SIZE]], preprocess, answer)
    tensors = {key: value.numpy() for key, value in task_state(model).items()}
    Bundle(record, tensors, canary).save(folder)
    write_samples(folder, Samples.unlabelled(noise[SIZE:]))
    return record


def seconds(work: Callable[[], Any]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(config: Config, scratch: Path) -> dict[str, float]:
    """Step -> seconds."""
    records = [write_task(scratch / name, config, name, seed) for seed, name in enumerate(("first", "second"))]
    store = StoreLayout(scratch / "store")

    def exported(name: str) -> float:
        return seconds(lambda: export(ExportConfig(scratch / name, out=store.root)))

    found = {"plain, shared and one folded task, with parity": exported("first")}
    found["the next task of the same backbone, with parity"] = exported("second")
    folder = store.backbone(records[0].backbone)
    bundle = Bundle.load(scratch / "second")
    graph = PlainGraph.load(folder)
    found["loading and checking the plain graph"] = seconds(lambda: PlainGraph.load(folder))
    found["folding a task with numpy"] = seconds(lambda: fold_bundle(graph, bundle))
    folded = fold_bundle(graph, bundle)
    found["writing the folded graph"] = seconds(lambda: onnx.save(folded, scratch / "folded.onnx"))
    return found


@command
def main() -> None:
    """Write the table."""
    config = tyro.cli(Config, prog="python -m benchmarks.export")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(config, Path(scratch))
    text = table(("step", "seconds"), [(name, f"{value:.2f}") for name, value in found.items()])
    words = f"{config.backbone}, r = {config.bottleneck}, parity on {SIZE + config.calibration} images"
    write_text(config.out, f"# Exporting {words}\n\n{provenance('benchmarks.export')}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
