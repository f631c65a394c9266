"""The bundle: everything that a task owns, as `adapter.safetensors` and `adapter.json` in one folder.

The tensors are the adapters, the head, the canary and what `mosa_deploy.bundles.feature_statistics` says of features,
if the run had enough validation images. The record (`mosa_deploy.bundles.record`) describes them and
holds the sha256 of `adapter.safetensors`, which is the bundle's digest. This needs no torch, and nothing unpickles.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mosa_deploy.bundles.adapter_config import PATCHES, READERS, SCALED, TARGET_SLICES, AdapterConfig
from mosa_deploy.bundles.canary import PREFIX, Canary
from mosa_deploy.bundles.feature_statistics import PREFIX as STATISTICS
from mosa_deploy.bundles.feature_statistics import FeatureStatistics
from mosa_deploy.bundles.ownership import owns
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.probe_features import QUERY, features_width
from mosa_deploy.bundles.record import RECORD, TENSORS, Record, read_record
from mosa_deploy.errors import BundleError
from mosa_deploy.utils.files import FilePath, replacing
from mosa_deploy.utils.shapes import Shapes, shape_faults, shapes_of

Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Bundle:
    """A task: its record, its tensors by the names of `mosa_deploy.adapters.attach.task_state`, and its canary."""

    record: Record
    tensors: Tensors
    canary: Canary
    statistics: FeatureStatistics | None = None
    """By what it tells how unknown an image is; None if it cannot."""

    @property
    def digest(self) -> str:
        """sha256 of `adapter.safetensors`."""
        return self.record.sha256

    @property
    def head(self) -> tuple[Array, Array]:
        """Weight (K, F) and bias (K,) of the classifier, fp32; F is C in all but probes."""
        weight, bias = (self.tensors[f"{self.record.backbone.topology.head}.{part}"] for part in ("weight", "bias"))
        return weight.astype(np.float32), bias.astype(np.float32)

    def save(self, folder: FilePath) -> "Bundle":
        """Write the two files and return the bundle with its digest.

        Raises:
            BundleError: a tensor is missing, unexpected or misshapen, or not finite.
        """
        check_tensors(self.record, self.tensors)
        folder = Path(folder)
        # safetensors writes metadata in random order: without any, the same tensors give the same bytes.
        # It writes an array's memory as it lies, and a transposed view would come back scrambled.
        tensors = {**self.tensors, **self.canary.to_tensors()}
        if self.statistics is not None:
            tensors |= self.statistics.to_tensors()
        content = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
        update = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "unknown": None if self.statistics is None else "relative",
        }
        record = self.record.model_copy(update=update)
        # Both are written before either is renamed: a full disk must not leave new tensors beside an old record.
        with replacing(folder / TENSORS) as weights, replacing(folder / RECORD) as text:
            weights.write_bytes(content)
            text.write_bytes(record.model_dump_json(indent=2).encode() + b"\n")
        return Bundle(record, self.tensors, self.canary, self.statistics)

    @classmethod
    def load(cls, folder: FilePath) -> "Bundle":
        """Read and check a bundle.

        Raises:
            BundleError: a file is missing, damaged or altered, was written by a newer release, or holds other tensors
                than the record says.
        """
        folder = Path(folder)
        try:
            content = (folder / TENSORS).read_bytes()
        except OSError as error:
            read_record(folder)  # If both are missing, the error names the record.
            raise BundleError(f"{folder / TENSORS}: {error.strerror}; a bundle is {TENSORS} with {RECORD}") from None
        return cls.parse(read_record(folder), content, str(folder / TENSORS))

    @classmethod
    def parse(cls, record: Record, content: bytes, where: str) -> "Bundle":
        """Check the bytes of an `adapter.safetensors`; errors call it `where`.

        Raises:
            BundleError: they were altered, or hold other tensors than the record says.
        """
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise BundleError(f"{where} was altered or cut short since it was saved: copy the bundle again")
        try:
            stored = load(content)
        except SafetensorError as error:
            raise BundleError(f"{where} is not a safetensors file: {error}") from None
        except KeyError as error:
            raise BundleError(f"{where} holds {error.args[0]}, which numpy cannot read: save it as F32") from None
        beside = (PREFIX,) if record.unknown is None else (PREFIX, STATISTICS)
        tensors = {name: value for name, value in stored.items() if not name.startswith(beside)}
        check_tensors(record, tensors)
        return cls(record, tensors, Canary.from_tensors(stored), _statistics(record, stored))


def _statistics(record: Record, stored: Tensors) -> FeatureStatistics | None:
    if record.unknown is None:
        return None
    return FeatureStatistics.from_tensors(stored, features_width(record.features, record.backbone.topology))


def expected_shapes(record: Record) -> Shapes:
    """Name and shape of every tensor that a bundle of this record holds, without the canary."""
    topology, adapter = record.backbone.topology, record.adapter
    shapes: Shapes = {
        f"{topology.head}.weight": (len(record.classes), features_width(record.features, topology)),
        f"{topology.head}.bias": (len(record.classes),),
    }
    if record.features == "attended":
        shapes[QUERY] = (topology.features,)
    if adapter is None:
        return shapes
    for block, width in adapter.adapted(topology.blocks).items():
        if adapter.style in ("parallel", "pfeiffer"):
            shapes |= {f"{block}.adapter.norm.{part}": (width,) for part in ("weight", "bias")}
            shapes |= _bottleneck_shapes(record, adapter, f"{block}.adapter", width, width, bias=True)
        for place in ("attn", "ffn") if adapter.style == "houlsby" else ():
            shapes |= _bottleneck_shapes(record, adapter, f"{block}.adapter.{place}", width, width, bias=True)
        for target in adapter.targets:
            module, _, parts = TARGET_SLICES[target]
            outputs, inputs = record.module_shape(module)
            name = f"{block}.{module}.adapter.{target}"
            shapes |= _bottleneck_shapes(record, adapter, name, inputs, outputs // parts, bias=False)
        for reader in READERS if adapter.style == "repadapter" else ():
            shapes |= _bottleneck_shapes(record, adapter, f"{block}.{reader}.adapter", width, width, bias=True)
        for place in SCALED if adapter.style == "ssf" else ():
            shapes |= _scale_shapes(f"{block}.{place}", record.module_shape(place)[0])
    return shapes | (_scale_shapes(PATCHES, topology.width) if adapter.scales_patches else {})


def _scale_shapes(layer: str, outputs: int) -> Shapes:
    """The tensors of SSF after a layer."""
    return {f"{layer}.adapter.{part}": (outputs,) for part in ("scale", "shift")}


def _bottleneck_shapes(
    record: Record, adapter: AdapterConfig, name: str, inputs: int, outputs: int, bias: bool
) -> Shapes:
    """The tensors of two projections, down and up; a split one has an owner map, and one bias for each expert."""
    shapes: Shapes = {}
    read = adapter.bottleneck // (adapter.groups or 1)
    for part, shape in (("down", (adapter.bottleneck, inputs)), ("up", (outputs, read))):
        layer, split = f"{name}.{part}", record.form == "split" and adapter.share != part
        shapes |= {f"{layer}.weight": shape}
        if bias:
            shapes |= {f"{layer}.bias": (adapter.experts, shape[0]) if split else (shape[0],)}
        if split:
            shapes |= {f"{layer}.base": shape, f"{layer}.owner": shape}
    return shapes


def check_tensors(record: Record, tensors: Tensors) -> None:
    """Compare names and shapes with the record, and refuse what is not finite.

    Of a backbone's own parameters the record tells no shapes. They are compared with the graph that they are folded
    into.

    Raises:
        BundleError: lists every missing, unexpected, misshapen or non-finite tensor at once.
    """
    expected, given = expected_shapes(record), shapes_of(tensors)
    if record.tunes_backbone:
        topology = record.backbone.topology
        given = {
            name: shape for name, shape in given.items() if name in expected or not owns(record.method, name, topology)
        }
    faults = shape_faults(expected, given)
    if faults:
        raise BundleError(f"the tensors of '{record.task}' do not fit its record: {faults}")
    odd = [name for name, value in sorted(tensors.items()) if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if odd:
        raise BundleError(f"'{record.task}' holds NaN or infinity in {', '.join(odd)}: tune again with a lower --lr")
