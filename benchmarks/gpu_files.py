"""What `benchmarks.gpu` times of an export: fp16 files on ONNX Runtime's CUDA provider, and the service on them.

This part needs the whole package, onnxruntime-gpu, and for the service BentoML. They are imported where they are used,
so that a machine without them measures the rest.
"""

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_models import CONTROL, FOLDED, MIXED, PLAIN, SHARED, TASKS
from benchmarks.gpu_timing import Call, check
from mosa_deploy.errors import ConfigError

if TYPE_CHECKING:
    from mosa_deploy.bundles.bundle import Bundle
    from tests.support.load import Ask
    from tests.support.tasks import TaskMaker

FP32 = "plain, fp32 file"

FILES = (PLAIN, CONTROL, FP32, FOLDED, SHARED, MIXED)
"""The variants of mode `files`. All but one are the fp16 file; CUDA multiplies the fp32 one in TF32."""

ONE_TASK, MIXED_TASKS = "one task", f"{TASKS} tasks mixed"

LOADS = (ONE_TASK, MIXED_TASKS)
"""The variants of mode `service`."""

IN_FLIGHT = (1, 16, 64)

LEG = 8
"""How many times as many requests as are in flight a timed load sends."""


class Exported:
    """A store with a backbone and its tasks in fp16, made when it is first needed; close it at the end."""

    def __init__(self, backbone: str, bottleneck: int, device: str) -> None:
        self.backbone, self.bottleneck, self.on_gpu = backbone, bottleneck, device == "cuda"
        self.open = ExitStack()

    def close(self) -> None:
        """Stop the service and remove the store."""
        self.open.close()

    @cached_property
    def folder(self) -> Path:
        """A folder for the store and all files."""
        return Path(self.open.enter_context(tempfile.TemporaryDirectory(prefix="mosa-gpu-")))

    @cached_property
    def maker(self) -> "TaskMaker":
        """The tasks' store, which has the plain and the shared graph."""
        from tests.support.tasks import TaskMaker, picture

        images = tuple(picture(seed, size=(320, 240)) for seed in range(TASKS))
        return TaskMaker(self.folder / "store", self.backbone, images)

    @cached_property
    def bundles(self) -> "list[Bundle]":
        """The tasks, which are also written into the store."""
        archives = [self.maker.make(f"task-{t}", t, self.bottleneck) for t in range(TASKS)]
        for archive in archives:
            self.maker.store(archive)
        return [archive.bundle() for archive in archives]

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """Name -> graph. The shared one lies in the store, where the service finds it."""
        import onnx

        from export.fp16 import to_fp16
        from mosa_deploy.bundles.graph_index import add_graph_file
        from mosa_deploy.bundles.store_layout import PLAIN as PLAIN_GRAPH
        from mosa_deploy.bundles.store_layout import StoreLayout, format_file
        from mosa_deploy.graphs.adapter_weights import layout_of
        from mosa_deploy.graphs.fold import fold_bundle

        backbone = StoreLayout(self.maker.root).backbone(self.maker.backbone)
        graph = backbone / layout_of(self.bundles[0].record).file
        found = {
            FP32: backbone / PLAIN_GRAPH,
            PLAIN: self.folder / "plain.onnx",
            FOLDED: self.folder / "folded.onnx",
            SHARED: format_file(graph, "fp16"),
        }
        onnx.save(to_fp16(self.maker.graph.model), found[PLAIN])
        onnx.save(to_fp16(fold_bundle(self.maker.graph, self.bundles[0])), found[FOLDED])
        onnx.save(to_fp16(onnx.load(graph)), found[SHARED])
        add_graph_file(found[SHARED])
        return found | {CONTROL: found[PLAIN], MIXED: found[SHARED]}

    def calls(self, batch: int, names: tuple[str, ...]) -> dict[str, Call]:
        """Name -> call that copies a batch of images to the device, runs it and copies the answers back.

        Raises:
            ConfigError: a file answers otherwise than it should.
        """
        height, width = self.maker.preprocess.size
        images = np.random.default_rng(batch).standard_normal((batch, 3, height, width), dtype=np.float32)
        found: dict[str, Call] = {name: partial(self._opened(name, batch), images) for name in names}
        for first, second in ((FP32, PLAIN), (PLAIN, CONTROL), (SHARED, MIXED)):
            if {first, second} <= found.keys():
                # The first image of a mixed batch is the first task's.
                check(found[second]()[:1], found[first]()[:1])
        return found

    def _opened(self, name: str, batch: int) -> Callable[[Any], Tensor]:
        from mosa_deploy.graphs.adapter_weights import adapter_weights, layout_of
        from mosa_deploy.graphs.bank import Bank
        from mosa_deploy.runtimes.runner import open_runner
        from mosa_deploy.runtimes.shared import SharedRunner

        runner = open_runner(self.files[name], "onnxruntime-cuda" if self.on_gpu else "onnxruntime-cpu")
        if name not in (SHARED, MIXED):
            return lambda images: torch.from_numpy(runner.run(images))
        bank = Bank(layout_of(self.bundles[0].record), self.bottleneck, TASKS)
        written = [bank.write(adapter_weights(bundle)) for bundle in self.bundles]
        slots = np.resize(np.array(written[: 1 if name == SHARED else TASKS]), batch)
        shared = SharedRunner(runner, bank)
        return lambda images: torch.from_numpy(shared.run(images, slots))

    @cached_property
    def address(self) -> str:
        """Where a service on the store listens. On a GPU it answers from the fp16 file."""
        from tests.support.service import HERE, serve

        runtime, precision = ("onnxruntime-cuda", "fp16") if self.on_gpu else ("onnxruntime-cpu", "fp32")
        settings: dict[str, object] = {"runtime": runtime, "precision": precision, "max_batch": max(IN_FLIGHT)}
        assert self.files
        server = self.open.enter_context(serve(self.maker.root, self.folder, HERE, deadline_s=120, **settings))
        server.wait_until("ready")
        return server.address

    def loads(self, in_flight: int) -> dict[str, Call]:
        """Name -> call that sends requests, `in_flight` at a time, until `LEG` times as many are answered."""
        from tests.support.load import classify

        address, images = self.address, self.maker.images
        asks = [
            [classify(f"task-{t}", i, content) for i, content in enumerate(images)] for t in range(len(self.bundles))
        ]
        legs = {
            ONE_TASK: [asks[0][i % len(images)] for i in range(LEG * in_flight)],
            MIXED_TASKS: [asks[i % TASKS][i // TASKS % len(images)] for i in range(LEG * in_flight)],
        }
        return {name: partial(load, address, leg, in_flight) for name, leg in legs.items()}


def load(address: str, asks: "list[Ask]", in_flight: int) -> Tensor:
    """Send the requests and return the seconds of each.

    Raises:
        ConfigError: an answer is wrong.
    """
    from benchmarks.load import wrong
    from tests.support.load import closed
    from tests.support.tasks import CLASSES

    replies = asyncio.run(closed(address, asks, in_flight))
    bad = wrong(replies, {f"task-{t}": t for t in range(TASKS)}, CLASSES)
    if bad:
        raise ConfigError(f"{bad} of {len(replies)} answers are wrong")
    return torch.tensor([reply.seconds for reply in replies])
