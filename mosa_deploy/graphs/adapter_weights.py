"""A task's adapter weights: what its merged adapter adds to each block that has one, computed with numpy alone.

The folded lane adds them to the backbone's parameters (`mosa_deploy.graphs.fold`), the shared lane keeps them in banks
(`mosa_deploy.graphs.bank`). Their names begin with timm's name of the block. With s the scale and ga, bea the affine of
the adapter's norm:

    parallel    <block>.down       (C, r)   [ D diag(ga) ]^T        <block>.up       (r, C)   [ s U ]^T
                <block>.down_bias  (r,)     d + D bea               <block>.up_bias  (C,)     s u

    low-rank    <block>.<module>.down  (in, R)   A^T of every target in the module, side by side
                <block>.<module>.up    (R, out)  [ s B ]^T, each in the outputs of its target, zeros elsewhere

    repadapter  <block>.<module>.down  (C, r)    D^T of the adapter before the module
                <block>.<module>.up    (r, C)    [ s U ]^T, its groups in their places, zeros elsewhere
                <block>.<module>.bias  (C,)      s (U d + u)

    ssf         <operation>.scale      (out,)    g - 1        <operation>.shift   (out,)   t

R is r times the largest number of targets in one module. Modules with fewer targets leave the rest of R zero. Since
zeros stand for the plain backbone everywhere, a scale is what is added to 1. A probe has no adapter; an attentive one
has its query instead, divided by sqrt(C) as the graphs take it.
Everything is computed in float64 and rounded to float32 at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from mosa_deploy.bundles.adapter_config import PATCHES, PROBES, READERS, SCALED, TARGET_SLICES, AdapterConfig, Style
from mosa_deploy.bundles.probe_features import Features, columns
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.errors import BundleError
from mosa_deploy.utils.affine import absorb_norm

if TYPE_CHECKING:
    # Only named: the shared graph reads the layout where there is no pydantic.
    from mosa_deploy.bundles.bundle import Bundle, Tensors
    from mosa_deploy.bundles.record import Record

Array = NDArray[np.float32]
Double = NDArray[np.float64]

PARTS = ("down", "down_bias", "up", "up_bias")
"""The weights of a parallel adapter, in the order of the shared graph's inputs."""

AdapterWeights = Mapping[str, Array]
"""Name -> weight, as above."""


def digest_of(weights: AdapterWeights) -> str:
    """sha256 of the names, shapes and values of weights: tasks with the same one have the same adapter."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.shape} {value.dtype}\n".encode())
        found.update(np.ascontiguousarray(value).data)
    return found.hexdigest()


@dataclass(frozen=True)
class Layout:
    """Which adapter weights the tasks of one shared graph have: beside the FFN, or for some layers of a block."""

    topology: BlockTopology
    modules: tuple[tuple[str, int, int], ...] = ()
    """The layers with weights of their own: name within the block, inputs, outputs; empty for parallel adapters."""
    style: Style = "parallel"
    """The style of the tasks' adapters."""
    by_slot: ClassVar[bool] = True
    """Whether an image runs for the task in one slot, which is an input, or for all tasks at once."""

    @property
    def file(self) -> str:
        """The name of the shared graph, e.g. `shared.onnx`, `shared-qkv.onnx` or `shared-ssf.onnx`."""
        named = [name.rpartition(".")[2] for name, _, _ in self.modules] if self.style == "low-rank" else [self.style]
        return f"{'-'.join(['shared', *named])}.onnx" if self.modules else "shared.onnx"

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Name -> inputs and outputs of everything that has weights of its own, in the order in which it runs."""
        if not self.modules:
            return {block: (width, width) for block, width in self.topology.blocks.items()}
        before = {PATCHES: (0, self.topology.width)} if self.style == "ssf" else {}
        layers = ((block, module) for block in self.topology.blocks for module in self.modules)
        return before | {f"{block}.{name}": (inputs, outputs) for block, (name, inputs, outputs) in layers}

    def shapes(self, bottleneck: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight in the order of the graph's inputs; `bottleneck` is r, or R if low-rank."""
        return {
            f"{place}.{part}": shape
            for place, (inputs, outputs) in self.places.items()
            for part, shape in shapes_at(self.style, inputs, outputs, bottleneck).items()
        }

    def columns(self, features: Features, slot: int) -> slice:
        """The columns that a task's head reads in what the graph gives for its slot: all of them."""
        return slice(None)

    def __str__(self) -> str:
        named = ", ".join(name for name, _, _ in self.modules)
        what = {"low-rank": f" with updates of {named}", "repadapter": f" with adapters before {named}"}
        return f"{self.topology}{what.get(self.style, f' with scales of {named}') if self.modules else ''}"


def shapes_at(style: Style, inputs: int, outputs: int, r: int) -> dict[str, tuple[int, ...]]:
    """Part -> shape of the weights in one place."""
    match style:
        case "low-rank":
            return {"down": (inputs, r), "up": (r, outputs)}
        case "repadapter":
            return {"down": (inputs, r), "up": (r, inputs), "bias": (inputs,)}
        case "ssf":
            return {"scale": (outputs,), "shift": (outputs,)}
        case _:
            return {"down": (inputs, r), "down_bias": (r,), "up": (r, outputs), "up_bias": (outputs,)}


@dataclass(frozen=True)
class ProbeLayout:
    """The shared graph of probes: one pass of an image serves all of them, whatever their heads read."""

    topology: BlockTopology
    by_slot: ClassVar[bool] = False
    file: ClassVar[str] = "shared-probes.onnx"

    def shapes(self, bottleneck: int) -> dict[str, tuple[int, ...]]:
        """The query of an attentive probe; others have none."""
        return {"query": (self.topology.features,)}

    def columns(self, features: Features, slot: int) -> slice:
        """The columns that a task's head reads."""
        return columns(features, self.topology, slot)

    def __str__(self) -> str:
        return f"{self.topology} for probes"


SharedLayout = Layout | ProbeLayout


def choose_layout(record: Record, files: Collection[str]) -> SharedLayout:
    """The layout by which a task is served or exported, where a backbone has the shared graphs `files`.

    A linear task on timm's own features runs with all other probes where their graph is, as `layout_of` says elsewhere.

    Raises:
        BundleError: no shared graph can serve the task.
    """
    probes = ProbeLayout(record.backbone.topology)
    return probes if record.method in PROBES and probes.file in files else layout_of(record)


def layout_of(record: Record) -> SharedLayout:
    """The layout of a task's adapter weights; a linear task on timm's own features has none and fits the parallel one.

    Raises:
        BundleError: no shared graph can serve the task: the backbone itself was tuned, or its adapters are sequential.
    """
    backbone, adapter = record.backbone, record.adapter
    if adapter is not None and record.sequential:
        raise BundleError(
            f"'{record.task}' has {adapter.style} adapters, which can neither be folded nor go into a bank: export it"
            " unfolded, as a graph of its own"
        )
    if record.tunes_backbone:
        raise BundleError(f"'{record.task}' has tuned the backbone itself: only the folded lane can serve it")
    if record.features != "cls":
        return ProbeLayout(backbone.topology)
    if adapter is None or adapter.style == "parallel":
        return Layout(backbone.topology)
    wanted = {TARGET_SLICES[target].module for target in adapter.targets}
    updated = dict.fromkeys(place.module for place in TARGET_SLICES.values() if place.module in wanted)
    shapes = {
        name: record.module_shape(name) for name in {"repadapter": READERS, "ssf": SCALED}.get(adapter.style, updated)
    }
    modules = tuple((name, inputs, outputs) for name, (outputs, inputs) in shapes.items())
    return Layout(backbone.topology, modules, adapter.style)


def adapter_weights(bundle: Bundle) -> dict[str, Array]:
    """The adapter weights of a task, float32, its experts merged; a probe has none but its query.

    Raises:
        BundleError: no shared graph can serve the task, see `layout_of`.
    """
    record, names = bundle.record, layout_of(bundle.record)
    if record.features == "attended":
        query = bundle.tensors["query"].astype(np.float64)
        return {"query": (query / np.sqrt(len(query))).astype(np.float32)}
    if record.adapter is None or isinstance(names, ProbeLayout):
        return {}
    tensors = merge_experts(bundle.tensors, record.adapter)
    of_block = {"low-rank": _low_rank, "repadapter": _repadapter, "ssf": _ssf}.get(names.style, _parallel)
    weights: dict[str, Double] = _scale(tensors, PATCHES) if record.adapter.scales_patches else {}
    for block in record.adapter.adapted(names.topology.blocks):
        weights |= of_block(tensors, block, record.adapter, names)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def _parallel(tensors: Tensors, block: str, config: AdapterConfig, names: Layout) -> dict[str, Double]:
    parts = ("down.weight", "down.bias", "up.weight", "up.bias", "norm.weight", "norm.bias")
    weight, bias, up, up_bias, gain, shift = (tensors[f"{block}.adapter.{part}"].astype(np.float64) for part in parts)
    weight, bias = absorb_norm(weight, bias, gain, shift)
    values = (weight.T, bias, config.scale * up.T, config.scale * up_bias)
    return {f"{block}.{part}": value for part, value in zip(PARTS, values, strict=True)}


def _low_rank(tensors: Tensors, block: str, config: AdapterConfig, names: Layout) -> dict[str, Double]:
    targets = {name: [t for t in config.targets if TARGET_SLICES[t].module == name] for name, _, _ in names.modules}
    rank = config.bottleneck * max(map(len, targets.values()))
    weights: dict[str, Double] = {}
    for module, inputs, outputs in names.modules:
        down, up = np.zeros((inputs, rank)), np.zeros((rank, outputs))
        for k, target in enumerate(targets[module]):
            a, b = (tensors[f"{block}.{module}.adapter.{target}.{part}.weight"] for part in ("down", "up"))
            own, start = slice(k * config.bottleneck, (k + 1) * config.bottleneck), TARGET_SLICES[target].start(outputs)
            down[:, own] = a.T
            up[own, start : start + len(b)] = config.scale * b.T.astype(np.float64)
        weights |= {f"{block}.{module}.down": down, f"{block}.{module}.up": up}
    return weights


def _repadapter(tensors: Tensors, block: str, config: AdapterConfig, names: Layout) -> dict[str, Double]:
    weights: dict[str, Double] = {}
    for module, _, _ in names.modules:
        parts = ("down.weight", "down.bias", "up.weight", "up.bias")
        down, bias, up, up_bias = (tensors[f"{block}.{module}.adapter.{part}"].astype(np.float64) for part in parts)
        if config.groups is not None:
            own = np.kron(np.eye(config.groups), np.ones((len(up) // config.groups, up.shape[1])))
            up = (own * np.tile(up, config.groups)).astype(np.float64)
        values = {"down": down.T, "up": config.scale * up.T, "bias": config.scale * (up @ bias + up_bias)}
        weights |= {f"{block}.{module}.{part}": value for part, value in values.items()}
    return weights


def _ssf(tensors: Tensors, block: str, config: AdapterConfig, names: Layout) -> dict[str, Double]:
    weights: dict[str, Double] = {}
    for name, _, _ in names.modules:
        weights |= _scale(tensors, f"{block}.{name}")
    return weights


def _scale(tensors: Tensors, place: str) -> dict[str, Double]:
    scale, shift = (tensors[f"{place}.adapter.{part}"].astype(np.float64) for part in ("scale", "shift"))
    return {f"{place}.scale": scale - 1, f"{place}.shift": shift}


def merge_experts(tensors: Tensors, config: AdapterConfig) -> Tensors:
    """A bundle's tensors with every split projection merged: W = W0 + m * Delta, b = mean of the experts' biases."""
    scale = 1 / config.experts if config.merge_scale is None else config.merge_scale
    whole = {name: value for name, value in tensors.items() if not name.endswith((".owner", ".base"))}
    for name in tensors:
        if name.endswith(".base"):
            layer = name.removesuffix(".base")
            base, delta = (tensors[f"{layer}.{part}"].astype(np.float64) for part in ("base", "weight"))
            whole[f"{layer}.weight"] = base + scale * delta
            if f"{layer}.bias" in tensors:
                whole[f"{layer}.bias"] = tensors[f"{layer}.bias"].astype(np.float64).mean(axis=0)
    return whole
