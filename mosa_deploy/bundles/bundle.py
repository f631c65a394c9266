"""The bundle: all that a task owns, as `adapter.safetensors` and `adapter.json` in one folder.

The tensors are the adapters, the head and the canary. The record says what they are and what they fit, and holds the
sha256 of `adapter.safetensors`, which is the bundle's digest. Nothing here needs torch, and nothing unpickles.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mosa_deploy.bundles.adapter_config import ON_SWIN, TARGET_SLICES, AdapterConfig, Method
from mosa_deploy.bundles.canary import PREFIX, Canary
from mosa_deploy.bundles.preprocess import Array, Preprocess
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.errors import BundleError, ConfigError
from mosa_deploy.graphs.adapter_weights import module_shape
from mosa_deploy.utils.files import replacing
from mosa_deploy.utils.shapes import Shapes, shape_faults, shapes_of

FORMAT_VERSION = 1
TENSORS, RECORD = "adapter.safetensors", "adapter.json"

TASK_NAME = r"^[a-z][a-z0-9._-]{0,63}$"

Tensors = dict[str, NDArray[np.generic]]


class Backbone(BaseModel):
    """What the task was tuned on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: Literal["pretrained", "file", "random"]
    sha256: str
    """Of the headless state dict, see `mosa_deploy.backbones.load.fingerprint`."""
    # Bounded, since a record from a stranger is looped over before it is compared with anything.
    depth: Annotated[int, Field(ge=1, le=1000)]
    embed_dim: Annotated[int, Field(ge=1, le=65536)]
    stages: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=8)] = ()
    """How many blocks each stage of a Swin has; empty for a ViT."""
    hidden: int | None = None
    """M, the inner width of the FFNs, for updates of theirs."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.stages and sum(self.stages) != self.depth:
            raise ValueError(f"stages of {', '.join(map(str, self.stages))} blocks are not {self.depth} in all")
        return self

    @property
    def topology(self) -> BlockTopology:
        """Where its blocks lie."""
        return BlockTopology(self.depth, self.embed_dim, self.stages)

    @property
    def folder(self) -> str:
        """The backbone's folder in a store."""
        return f"{self.name}-{self.sha256[:8]}"


class Record(BaseModel):
    """`adapter.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    task: Annotated[str, Field(pattern=TASK_NAME)]
    """What it is called where it is served."""
    dataset: str
    """The task of `training.tasks` whose images it was tuned on."""
    backbone: Backbone
    method: Method
    form: Literal["split", "merged"]
    """`split`: the experts are still apart, as tuning leaves them; `merged`: one complete adapter."""
    adapter: AdapterConfig | None
    """None for `linear`, which has a head only, and for `full`, which has every parameter of the backbone."""
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    metrics: dict[str, float]
    seed: int
    versions: dict[str, str]
    git_commit: str | None
    sha256: str = ""

    @model_validator(mode="after")
    def _can_be_on_a_swin(self) -> Self:
        beside = self.adapter is None or self.adapter.style == "parallel"
        if self.backbone.stages and not (beside and self.method != "full"):
            raise ValueError(f"{self.method} on {self.backbone.name}: {ON_SWIN}")
        return self


@dataclass(frozen=True)
class Bundle:
    """A task: its record, its tensors by the names of `mosa_deploy.adapters.attach.task_state`, and its canary."""

    record: Record
    tensors: Tensors
    canary: Canary

    @property
    def digest(self) -> str:
        """sha256 of `adapter.safetensors`."""
        return self.record.sha256

    @property
    def head(self) -> tuple[Array, Array]:
        """Weight (K, C) and bias (K,) of the classifier, fp32."""
        weight, bias = (self.tensors[f"{self.record.backbone.topology.head}.{part}"] for part in ("weight", "bias"))
        return weight.astype(np.float32), bias.astype(np.float32)

    def save(self, folder: Path) -> "Bundle":
        """Write the two files and return the bundle with its digest.

        Raises:
            BundleError: a tensor is missing, unexpected or misshapen, or not finite.
        """
        check_tensors(self.record, self.tensors)
        # safetensors writes metadata in random order: without any, the same tensors give the same bytes.
        # It writes the memory as it lies: a transposed view would come back scrambled.
        tensors = {**self.tensors, **self.canary.to_tensors()}
        content = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
        record = self.record.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
        # Both are written before either is renamed: a full disk must not part new tensors from their record.
        with replacing(folder / TENSORS) as weights, replacing(folder / RECORD) as text:
            weights.write_bytes(content)
            text.write_bytes(record.model_dump_json(indent=2).encode() + b"\n")
        return Bundle(record, self.tensors, self.canary)

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Read and check a bundle.

        Raises:
            BundleError: a file is missing, of another format version, altered, or holds other tensors than it says.
        """
        try:
            content = (folder / TENSORS).read_bytes()
        except OSError as error:
            read_record(folder)  # It is the first to be missed where both are missing.
            raise BundleError(f"{folder / TENSORS}: {error.strerror}; a bundle is {TENSORS} with {RECORD}") from None
        return cls.parse(read_record(folder), content, str(folder / TENSORS))

    @classmethod
    def parse(cls, record: Record, content: bytes, where: str) -> "Bundle":
        """Check the bytes of `adapter.safetensors`, which messages call `where`.

        Raises:
            BundleError: altered, or other tensors than the record says.
        """
        if hashlib.sha256(content).hexdigest() != record.sha256:
            raise BundleError(f"{where} was altered or cut short since it was saved: copy the bundle again")
        try:
            stored = load(content)
        except SafetensorError as error:
            raise BundleError(f"{where} is not a safetensors file: {error}") from None
        except KeyError as error:
            raise BundleError(f"{where} holds {error.args[0]}, which numpy cannot: save it as F32") from None
        tensors = {name: value for name, value in stored.items() if not name.startswith(PREFIX)}
        check_tensors(record, tensors)
        return cls(record, tensors, Canary.from_tensors(stored))


def read_record(folder: Path) -> Record:
    """`adapter.json` of a bundle.

    Raises:
        BundleError: the file is missing, of another format version, or says what it cannot.
    """
    path = folder / RECORD
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; a bundle is {TENSORS} with {RECORD}") from None
    return parse_record(content, str(path))


def parse_record(content: bytes, where: str) -> Record:
    """The bytes of `adapter.json`, which messages call `where`.

    Raises:
        BundleError: of another format version, or says what it cannot.
    """
    try:
        fields = json.loads(content)
        version = fields.get("format_version")
    except (ValueError, AttributeError, RecursionError):
        raise BundleError(f"{where} is not a JSON object: copy the bundle again") from None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{where} has format version {version!s:.40}, this release reads {FORMAT_VERSION}: upgrade mosa-deploy"
        )
    try:
        return Record.model_validate(fields)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise BundleError(f"{where}: {'; '.join(faults)}") from None
    except ConfigError as error:
        raise BundleError(f"{where}: adapter: {error}") from None


def expected_shapes(record: Record) -> Shapes:
    """Name and shape of every tensor that a bundle of this record holds, without the canary."""
    topology, adapter = record.backbone.topology, record.adapter
    shapes: Shapes = {
        f"{topology.head}.weight": (len(record.classes), topology.features),
        f"{topology.head}.bias": (len(record.classes),),
    }
    if adapter is None:
        return shapes
    for block, width in topology.blocks.items():
        if adapter.style in ("parallel", "pfeiffer"):
            shapes |= {f"{block}.adapter.norm.{part}": (width,) for part in ("weight", "bias")}
            shapes |= _bottleneck_shapes(record, adapter, f"{block}.adapter", width, width, bias=True)
        for place in ("attn", "ffn") if adapter.style == "houlsby" else ():
            shapes |= _bottleneck_shapes(record, adapter, f"{block}.adapter.{place}", width, width, bias=True)
        for target in adapter.targets:
            module, _, parts = TARGET_SLICES[target]
            outputs, inputs = module_shape(record, module)
            name = f"{block}.{module}.adapter.{target}"
            shapes |= _bottleneck_shapes(record, adapter, name, inputs, outputs // parts, bias=False)
    return shapes


def _bottleneck_shapes(
    record: Record, adapter: AdapterConfig, name: str, inputs: int, outputs: int, bias: bool
) -> Shapes:
    """Of the two projections, down and up; split ones have owners, and a bias for each expert."""
    shapes: Shapes = {}
    for part, shape in (("down", (adapter.bottleneck, inputs)), ("up", (outputs, adapter.bottleneck))):
        layer, split = f"{name}.{part}", record.form == "split" and adapter.share != part
        shapes |= {f"{layer}.weight": shape}
        if bias:
            shapes |= {f"{layer}.bias": (adapter.experts, shape[0]) if split else (shape[0],)}
        if split:
            shapes |= {f"{layer}.base": shape, f"{layer}.owner": shape}
    return shapes


def check_tensors(record: Record, tensors: Tensors) -> None:
    """Compare names and shapes with the record, and refuse what is not finite.

    Of a fully tuned backbone only the head is known here; the rest is compared with the graph that it is folded into.

    Raises:
        BundleError: lists every missing, unexpected, misshapen or non-finite tensor at once.
    """
    expected, given = expected_shapes(record), shapes_of(tensors)
    if record.method == "full":
        given = {name: shape for name, shape in given.items() if name in expected}
    faults = shape_faults(expected, given)
    if faults:
        raise BundleError(f"the tensors of '{record.task}' do not fit its record: {faults}")
    odd = [name for name, value in sorted(tensors.items()) if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if odd:
        raise BundleError(f"'{record.task}' holds NaN or infinity in {', '.join(odd)}: tune again with a lower --lr")
