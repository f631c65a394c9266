"""The variants that `mosa latency` compares: different graphs for the same task.

    plain          the backbone with a head
    control        the same file in a second session: any difference is noise
    folded         the adapter in the FFN's weights: the same nodes as plain, hidden width M + r
    lora           an update of rank 16 merged into qkv: the same shapes as plain
    repadapter     adapters of r = 8 before qkv and fc1, folded: the same shapes as plain
    ssf            scales and shifts after every operation, folded: the same shapes as plain
    unfolded       the adapters as nodes of their own
    shared         the adapters in banks, which are inputs; all samples of one task; heads outside
    shared-mixed   the same with a batch that mixes eight tasks

The plain, shared and unfolded graphs are traced once for all r; numpy puts the weights into them.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

from export.engines import IMAGES, SLOTS
from export.fp16 import to_fp16
from export.int8 import to_int8
from export.intermediate import Feed
from export.timing import Answer
from export.trace import node_types, optimised_node_types, trace_plain, trace_shared
from mosa_deploy.adapters.attach import attach
from mosa_deploy.backbones.foldable import Transformer, image_size, topology_of
from mosa_deploy.bundles.adapter_config import READERS, SCALED, AdapterConfig, Style
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.store_layout import format_file
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.graphs.adapter_weights import PARTS, AdapterWeights, Layout, shapes_at
from mosa_deploy.graphs.backbone_graph import PlainGraph
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.graphs.fold import Parameters, fold_adapter, head_parameters
from mosa_deploy.runtimes.names import Precision, RunnerName
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.runtimes.shared import SharedRunner, SharedTask, apply_head

WITHOUT_ADAPTER = ("plain", "control", "lora", "repadapter", "ssf")
SHARED = ("shared", "shared-mixed")

RANK = 16
"""The rank of the low-rank update."""

BOTTLENECK = 8
"""r of the adapters before qkv and fc1."""

MIXED_TASKS = 8


@dataclass(frozen=True)
class Task:
    """A merged task: the topology of its backbone, its adapter weights, and its head (K, C), (K,)."""

    topology: BlockTopology
    weights: AdapterWeights
    head: Array
    bias: Array


@dataclass(frozen=True)
class Variant:
    """A variant for tasks of one bottleneck: its file and properties."""

    name: str
    bottleneck: int
    tasks: Sequence[Task]
    flop_ratio: float
    path: Path

    @property
    def label(self) -> str:
        """A unique name."""
        return f"{self.name}, r = {self.bottleneck}" if self.bottleneck else self.name

    @property
    def megabytes(self) -> float:
        """The size of the file and its bank in MB."""
        bank = self.in_bank[0].bank.tensors.values() if self.name in SHARED else ()
        return (self.path.stat().st_size + sum(tensor.nbytes for tensor in bank)) / 1e6

    @cached_property
    def nodes(self) -> int:
        """The number of nodes in the file."""
        return node_types(self.path).total()

    @cached_property
    def optimised_nodes(self) -> int:
        """The number of nodes after ONNX Runtime has optimised the file for the CPU."""
        return optimised_node_types(self.path, self.path.with_name("optimised.onnx")).total()

    @cached_property
    def in_bank(self) -> list[SharedTask]:
        """The tasks in one bank."""
        bank = Bank(Layout(self.tasks[0].topology), self.bottleneck, len(self.tasks))
        return [SharedTask.write(bank, task.weights, (task.head, task.bias)) for task in self.tasks]

    def feed(self, images: Array) -> Feed:
        """Every input of the graph by name; all samples are of the first task."""
        if self.name not in SHARED:
            return {IMAGES: images}
        task = self.in_bank[0]
        return {IMAGES: images, SLOTS: task.slots(len(images)), **task.bank.tensors}

    def open(self, runner: RunnerName, threads: int) -> Answer:
        """Load the graph and return a function from images to logits."""
        # Idle threads of one session must not spin while another is timed.
        opened = open_runner(self.path, runner, threads, spinning=False)
        if self.name not in SHARED:
            return opened.run
        if self.name == "shared":
            return self.in_bank[0].answer_by(opened)
        shared = SharedRunner(opened, self.in_bank[0].bank)

        def answer(images: Array) -> list[Array]:
            tasks = [self.in_bank[i % len(self.in_bank)] for i in range(len(images))]
            features = shared.run(images, np.array([task.slot for task in tasks]))
            return [apply_head(feature, task.head) for task, feature in zip(tasks, features, strict=True)]

        return answer


def random_task(topology: BlockTopology, bottleneck: int, classes: int, seed: int) -> Task:
    """A task with random weights, scaled to keep the scale of their input."""
    rng = np.random.default_rng([seed, bottleneck])

    def draw(shape: tuple[int, ...]) -> Array:
        deviation = shape[0] ** -0.5 if len(shape) > 1 else 0.1
        return (deviation * rng.standard_normal(shape)).astype(np.float32)

    weights = {name: draw(shape) for name, shape in Layout(topology).shapes(bottleneck).items()}
    return Task(topology, weights, draw((topology.features, classes)).T.copy(), draw((classes,)))


def write_variants(
    folder: Path, model: Transformer, tasks: Mapping[int, Sequence[Task]], names: Sequence[str]
) -> list[Variant]:
    """Write one graph per variant, or one per variant and bottleneck if the graph depends on it.

    `model` has a stand-in head. `tasks` maps a bottleneck to its tasks, and 0 to one whose fold changes no shape;
    graphs of a single task use the first one.
    """
    files = {}
    for name, r, graph in trace_variants(model, {r: alike[0] for r, alike in tasks.items()}, names):
        path = folder / f"{name}-{r}.onnx"
        onnx.save(graph, path)
        files[name, r] = path
    ratios = {r: flops(outline(model, r)) / flops(model) for r in tasks if r} | {0: 1.0}
    found = []
    for name in names:
        for r in (0,) if name in WITHOUT_ADAPTER else tasks:
            file = files[("plain", 0) if name == "control" else ("shared", 0) if name in SHARED else (name, r)]
            found.append(Variant(name, r, tasks.get(r, ()), ratios[r], file))
    return found


def in_precision(variants: Sequence[Variant], precision: Precision, images: Array) -> list[Variant]:
    """The variants with their fp32 files in another precision, each file written once; int8 is calibrated on `images`.

    Every product with a constant weight is quantised, with nothing left out: time depends on shapes alone.
    """
    if precision == "fp32":
        return list(variants)
    for path, variant in {variant.path: variant for variant in variants}.items():
        graph = onnx.load(path)
        made = to_int8(graph, [variant.feed(images)], "cpu") if precision == "int8" else to_fp16(graph)
        onnx.save(made, format_file(path, precision))
    return [replace(variant, path=format_file(variant.path, precision)) for variant in variants]


def trace_variants(
    model: Transformer, tasks: Mapping[int, Task], names: Collection[str]
) -> Iterator[tuple[str, int, onnx.ModelProto]]:
    """(name, bottleneck, graph) of each file that these variants need."""
    plain = trace_plain(model, sha256="")
    yield "plain", 0, plain.model
    if "lora" in names:
        yield "lora", 0, plain.replaced(low_rank(plain))
    for name in ("repadapter", "ssf"):
        if name in names:
            yield name, 0, plain.replaced(same_shapes(plain, name))
    if "folded" in names:
        for r, task in tasks.items():
            yield "folded", r, plain.replaced(folded(plain, task))
    if "unfolded" in names:
        config = AdapterConfig(min(tasks))
        beside = trace_plain(attach(copy.deepcopy(model), config, split=False), sha256="")
        for r, task in tasks.items():
            yield "unfolded", r, beside.replaced(unfolded(beside, task, config.scale))
    if not set(SHARED).isdisjoint(names):
        yield "shared", 0, trace_shared(model, Layout(topology_of(model)))


def folded(graph: PlainGraph, task: Task) -> Parameters:
    """The parameters of a plain graph that change when the task is folded into its FFNs."""
    return head_parameters(graph, task.head, task.bias) | fold_adapter(graph, task.weights)


def unfolded(graph: PlainGraph, task: Task, scale: float) -> Parameters:
    """The parameters of a graph with adapters as nodes. Their norms' affine parts are already in the task's weights."""
    values = head_parameters(graph, task.head, task.bias)
    for block in task.topology.blocks:
        down, down_bias, up, up_bias = (task.weights[f"{block}.{part}"] for part in PARTS)
        adapter = f"{block}.adapter"
        values |= {
            f"{adapter}.norm.weight": np.ones_like(up_bias),
            f"{adapter}.norm.bias": np.zeros_like(up_bias),
            f"{adapter}.down.weight": down.T,
            f"{adapter}.down.bias": down_bias,
            f"{adapter}.up.weight": up.T / np.float32(scale),
            f"{adapter}.up.bias": up_bias / np.float32(scale),
        }
    return values


def low_rank(graph: PlainGraph) -> Parameters:
    """The qkv weights W' = W + B A of every block, with random B (3 C, 16) and A (16, C)."""
    rng, values = np.random.default_rng(0), {}
    for block in graph.index.topology.blocks:
        weight = graph.parameter(f"{block}.attn.qkv.weight")
        up, down = rng.standard_normal((len(weight), RANK)), rng.standard_normal((RANK, weight.shape[1]))
        update = up @ down / np.sqrt(RANK * weight.shape[1])
        values[f"{block}.attn.qkv.weight"] = (weight + 0.1 * update).astype(np.float32)
    return values


def same_shapes(graph: PlainGraph, style: Style) -> Parameters:
    """The parameters that random adapters of a style change; all of them keep their shapes."""
    modules = {"repadapter": READERS, "ssf": SCALED}[style]
    rng, weights = np.random.default_rng(0), dict[str, Array]()
    for place in (f"{block}.{name}" for block in graph.index.topology.blocks for name in modules):
        weight = graph.parameter(f"{place}.weight")
        for part, shape in shapes_at(style, weight.shape[-1], len(weight), BOTTLENECK).items():
            drawn = rng.standard_normal(shape) / np.sqrt(shape[-1])
            weights[f"{place}.{part}"] = (0.1 * drawn).astype(np.float32)
    return fold_adapter(graph, weights)


def outline(model: Transformer, bottleneck: int) -> Transformer:
    """The model with adapters on the meta device, without memory for its weights."""
    return attach(copy.deepcopy(model).to("meta"), AdapterConfig(bottleneck), split=False)


def flops(model: Transformer) -> int:
    """Floating-point operations of matrix products for one image."""
    height, width = image_size(model)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, height, width, device=next(model.parameters()).device))
    return int(counter.get_total_flops())
