"""Tasks without tuning, for tests and benchmarks of the service: random adapters, and heads fitted to known answers.

Task t gives image i the top class (i + t) mod K, so each answer shows its task and image. The reference answers are
those of the task's folded graph, run alone by ONNX Runtime.
"""

import io
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from export.trace import STAND_IN_CLASSES, trace_backbone, trace_layout
from mosa_deploy.adapters.restore import describe_backbone
from mosa_deploy.backbones.embedded import NAME as EMBEDDED
from mosa_deploy.backbones.foldable import Transformer, image_size
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import AdapterConfig, Target
from mosa_deploy.bundles.answers import PerLabel
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle, expected_shapes
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.decision import ExportNote, now
from mosa_deploy.bundles.graph_index import read_index
from mosa_deploy.bundles.preprocess import Array, Preprocess
from mosa_deploy.bundles.probe_features import Features, features_width
from mosa_deploy.bundles.record import RECORD, TENSORS, Backbone, Record
from mosa_deploy.bundles.store_layout import EXPORT_NOTE, StoreLayout
from mosa_deploy.graphs.adapter_weights import Layout, layout_of
from mosa_deploy.graphs.backbone_graph import PlainGraph
from mosa_deploy.graphs.fold import fold_bundle, head_parameters

CLASSES = 32
CANARIES = 4
SHARPNESS = 8.0
"""The logit of the right class; other classes have 0."""

Traced = Callable[[str], Path]
"""Name of a backbone -> a store of its graphs, without a task."""


def picture(seed: int = 0, mode: str = "RGB", kind: str = "png", size: tuple[int, int] = (48, 40)) -> bytes:
    """The encoded bytes of a random picture (W, H) with coarse structure."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, format=kind)
    return buffer.getvalue()


@dataclass
class TaskMaker:
    """Makes tasks on one backbone of a store. The backbone is traced if the store does not have it yet."""

    root: Path
    name: str = EMBEDDED
    images: Sequence[bytes] = tuple(picture(seed) for seed in range(16))
    weights: Weights | None = None
    """Random ones if None; for the embedded backbone those of the package."""
    side: int | None = None
    """The side of the backbone's images in pixels; None is its own."""
    graph: PlainGraph = field(init=False)
    backbone: Backbone = field(init=False)
    preprocess: Preprocess = field(init=False)
    model: Transformer = field(init=False)

    def __post_init__(self) -> None:
        weights = self.weights or Weights("pretrained" if self.name == EMBEDDED else "random")
        model = load_backbone(self.name, weights, STAND_IN_CLASSES, self.side)
        self.backbone = describe_backbone(self.name, weights.source, model)
        height, width = image_size(model)
        self.preprocess = Preprocess(size=(height, width))
        folder = StoreLayout(self.root).backbone(self.backbone)
        if not folder.exists():
            trace_backbone(model, self.backbone.sha256, folder, Layout(self.backbone.topology))
        self.model = model
        self.graph = PlainGraph.load(folder)

    def make(
        self,
        name: str,
        seed: int = 0,
        bottleneck: int = 4,
        method: str = "mosa",
        classes: int = CLASSES,
        turn: int = 0,
        features: Features = "cls",
        targets: tuple[Target, ...] = ("q", "v"),
        per_label: PerLabel | None = None,
        blocks: int | None = None,
    ) -> Archive:
        """A merged bundle; probes have no adapter. `turn` renames the classes cyclically. `targets` are LoRA's.
        Only the last `blocks` blocks have adapters, if that is given.

        With `per_label` each image has two labels: its class, and the one after it.
        """
        adapter = {
            "linear": None,
            "attentive": None,
            "mosa": AdapterConfig(bottleneck=bottleneck, experts=2),
            "lora": AdapterConfig(bottleneck=bottleneck, experts=1, style="low-rank", targets=targets),
            "repadapter": AdapterConfig(
                bottleneck=bottleneck, experts=1, style="repadapter", groups=math.gcd(2, bottleneck)
            ),
            "ssf": AdapterConfig(experts=1, style="ssf", scale=1.0),
        }[method]
        if adapter is not None:
            adapter = replace(adapter, blocks=blocks)
        labels = [f"class-{k}" for k in range(classes)]
        record = Record.model_validate(
            {
                "task": name,
                "dataset": "probe",
                "backbone": self.backbone,
                "method": method,
                "form": "merged",
                "adapter": adapter,
                "features": features,
                "classes": (*labels[turn:], *labels[:turn]),
                "preprocess": self.preprocess,
                "temperature": 1.0 if per_label else 1.5,
                "per_label": per_label,
                "metrics": {},
                "seed": seed,
                "versions": {},
                "git_commit": None,
            }
        )
        folder = StoreLayout(self.root).backbone(self.backbone)
        if layout_of(record).file not in read_index(folder).files:
            trace_layout(self.model, folder, layout_of(record))
        generator = np.random.default_rng(seed)
        shapes = expected_shapes(record)
        tensors: dict[str, np.typing.NDArray[np.generic]] = {
            tensor: (0.5 * generator.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
            for tensor, shape in shapes.items()
        }
        tensors |= {tensor: 1 + value for tensor, value in tensors.items() if tensor.endswith(".adapter.scale")}
        read = self.features(Bundle(record, tensors, Canary((), np.empty((0, 0), dtype=np.float32))))
        wanted = np.zeros((len(self.images), classes))
        wanted[np.arange(len(self.images)), (np.arange(len(self.images)) + seed) % classes] = SHARPNESS
        if per_label:
            wanted = np.maximum(wanted, np.roll(wanted, 1, axis=1))
        weight = (np.linalg.pinv(read.astype(np.float64)) @ wanted).T.astype(np.float32)
        tensors |= head_parameters(self.graph, weight, np.zeros(classes, dtype=np.float32))
        logits = read @ weight.T
        canary = Canary(tuple(self.images[:CANARIES]), record.scores(logits)[:CANARIES])
        return packed(Bundle(record, tensors, canary))

    def features(self, bundle: Bundle) -> Array:
        """The features (n, C) of the probe images in the folded graph, before the head."""
        width = features_width(bundle.record.features, self.backbone.topology)
        eye = head_parameters(self.graph, np.eye(width, dtype=np.float32), np.zeros(width, dtype=np.float32))
        return self.run(Bundle(bundle.record, {**bundle.tensors, **eye}, bundle.canary), self.images)

    def offline(self, archive: Archive, images: Sequence[bytes] | None = None) -> Array:
        """The reference: probabilities (n, K) of the folded graph for `images`, or for the probe images."""
        bundle = archive.bundle()
        return bundle.record.scores(self.run(bundle, self.images if images is None else images))

    def run(self, bundle: Bundle, images: Sequence[bytes]) -> Array:
        """The logits (n, K) of the task's folded graph."""
        model = fold_bundle(self.graph, bundle)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        pixels = np.stack([self.preprocess.read(content) for content in images])
        given = {session.get_inputs()[0].name: self.preprocess.normalise(pixels)}
        return np.asarray(session.run(None, given)[0], dtype=np.float32)

    def store(self, archive: Archive, replaces: str | None = None) -> Path:
        """Write a task into the store, as an export would, and return its folder.

        `replaces` is the version that the export may replace; without it there is no note beside the bundle.
        """
        folder = StoreLayout(self.root).task(archive.bundle().record.task)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_bytes(archive.record)
        (folder / TENSORS).write_bytes(archive.tensors)
        if replaces:
            (folder / EXPORT_NOTE).write_text(ExportNote(exported=now(), replaces=replaces).model_dump_json())
        return folder


def packed(bundle: Bundle) -> Archive:
    """A bundle as an archive in memory."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle.save(Path(scratch))
        return Archive.of(Path(scratch))


def renamed(archive: Archive, name: str) -> Archive:
    """The same tensors under another name."""
    record = archive.bundle().record.model_copy(update={"task": name})
    return Archive(record.model_dump_json(indent=2).encode() + b"\n", archive.tensors)
