"""Parts `speed-s` and `speed-b` of `benchmarks.serving`: the precision that the service chooses, against fp32.

Two services open the same store, whose shared graph is there in fp32 and in int8, and take turns under the same load.
Every task carries validation images, as an exported one does.
"""

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx

from benchmarks.serving_speed import Bench, Figures, Scale, Stored, alternating, compare, mixed
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.gate import LabelledImage
from tests.support.quantised import IMAGES, write_int8, write_validation
from tests.support.tasks import TaskMaker


def against_fp32(scale: Scale, folder: Path) -> Figures:
    """Throughput of `MOSA_PRECISION=auto` against fp32; and under `auto`, what it costs to mix and to change tasks."""
    # Apart from `folder / "store"`, whose backbones later parts reuse: those have no int8 files.
    stored = quantised(scale, folder / "quantised")
    faults = 0

    def leg(made: Bench) -> float:
        nonlocal faults
        rate, bad = made.leg(made.names, scale.images)
        faults += bad
        return rate

    with ExitStack() as running:
        served = {}
        for precision in ("auto", "fp32"):
            place = folder / precision
            place.mkdir()
            served[precision] = running.enter_context(stored.serve(place, precision))
        auto, fp32 = served.values()
        found = compare({"auto images/s": lambda: leg(auto), "fp32 images/s": lambda: leg(fp32)}, scale.rounds)
        mixing = mixed(auto)
        return found | {
            "mixed / one task": mixing["ratio"],
            "alternating / same task, p50": alternating(auto)["ratio"],
            "tasks": scale.tasks,
            "in flight": scale.images,
            "wrong": faults + mixing["wrong"],
            "served by": served_by(auto.server.address),
        }


def quantised(scale: Scale, folder: Path) -> Stored:
    """A store as an export with int8 leaves it: each task with its validation images."""
    stored = Stored.make(scale, folder, IMAGES)
    write_int8(stored.maker.root, stored.maker, stored.archives["task-0"])
    for archive in stored.archives.values():
        write_validation(stored.maker.root, archive, carrying(stored.maker, archive).validation)
    return stored


def carrying(maker: TaskMaker, archive: Archive) -> Archive:
    """A task with its probe images as validation images, in the size that it reads."""
    bundle = archive.bundle()
    labels = [bundle.record.classes[k] for k in maker.offline(archive).argmax(1)]
    pixels = [maker.preprocess.read(content) for content in maker.images]
    images = [
        LabelledImage(f"{i:03}.png", label, encode(each))
        for i, (label, each) in enumerate(zip(labels, pixels, strict=True))
    ]
    return replace(archive, validation=tuple(images))


def served_by(address: str) -> str:
    """What serves the tasks that are loaded, with their numbers."""
    tasks = httpx.get(f"{address}/v1/tasks", timeout=30).json()["tasks"]
    counts = Counter(f"{task['runtime']} in {task['precision']}" for task in tasks if task["precision"])
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
