"""`adapter.json`: what a task is, which backbone it was tuned on, and the sha256 of its tensors."""

import json
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mosa_deploy.bundles.adapter_config import (
    BACKBONE_METHODS,
    SEQUENTIAL_STYLES,
    SWIN_ADVICE,
    AdapterConfig,
    Method,
)
from mosa_deploy.bundles.answers import Decisions, PerLabel, Thresholds, decide
from mosa_deploy.bundles.format_version import Fields, FileFormat
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.bundles.preprocess import Array, Preprocess, probabilities
from mosa_deploy.bundles.probe_features import Features, LinearFeatures
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.errors import BundleError, ConfigError

TENSORS, RECORD = "adapter.safetensors", "adapter.json"

CHECKPOINT = "checkpoint.pt"
"""What the folder of a run has until the run is finished, and its bundle not yet."""


def _decoded_as_ever(fields: Fields) -> Fields:
    """Version 2 says how images are decoded and resampled, and how a backbone departs from timm's.

    Before it there was one way, which is the default.
    """
    return fields


def _reads_timms_features(fields: Fields) -> Fields:
    """Version 3 says which features the head reads, and perhaps more of the backbone's weights than its name.

    Before it there was one way, which is the default.
    """
    return fields


def _decodes_every_pixel(fields: Fields) -> Fields:
    """Version 4 says whether the JPEG decoder may make large photos smaller.

    Before it there was one way, which is the default: every pixel is decoded.
    """
    return fields


def _has_no_groups(fields: Fields) -> Fields:
    """Version 5 says in how many groups a RepAdapter's up projection is; there were none before."""
    return fields


def _answers_one_class(fields: Fields) -> Fields:
    """Version 6 says how labels are answered where an image may have several.

    Before it there was one way, which is the default: one class per image.
    """
    return fields


def _says_nothing_of_unknown_images(fields: Fields) -> Fields:
    """Version 7 says whether the bundle has statistics of its features, by which unknown images are told.

    Before it there were none, which is the default.
    """
    return fields


RECORD_FORMAT = FileFormat(
    RECORD,
    BundleError,
    remedy="copy the bundle again",
    migrations=(
        _decoded_as_ever,
        _reads_timms_features,
        _decodes_every_pixel,
        _has_no_groups,
        _answers_one_class,
        _says_nothing_of_unknown_images,
    ),
)

TASK_NAME = r"^[a-z][a-z0-9._-]{0,63}$"
TASK_NAME_RULE = "lower-case letters, digits, '.', '_', '-', a letter first, 64 at most"
"""The same in words."""


class Backbone(BaseModel):
    """What the task was tuned on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: Literal["pretrained", "file", "random"]
    sha256: str
    """Hash of the headless state dict and the model's arguments, see `mosa_deploy.backbones.load.fingerprint`."""
    # Bounded, because a stranger's record is looped over before it is compared with anything.
    depth: Annotated[int, Field(ge=1, le=1000)]
    embed_dim: Annotated[int, Field(ge=1, le=65536)]
    stages: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=8)] = ()
    """How many blocks each stage of a Swin has; empty for a ViT."""
    hidden: int | None = None
    """M, the inner width of the FFNs; only adapters that update an FFN's layers need it."""
    model_args: ModelArgs | None = None
    """None in records of version 1: a ViT of transformers computes what the `config.json` beside its weights says."""
    about: Annotated[str, Field(max_length=200)] | None = None
    """What its weights are, where the name does not say it, such as `DINOv2 ViT-S/14, possibly tuned further`."""

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
        """The name of its folder in a store."""
        return f"{self.name}-{self.sha256[:8]}"


class Record(BaseModel):
    """`adapter.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = RECORD_FORMAT.newest
    task: Annotated[str, Field(pattern=TASK_NAME)]
    """The name under which it is served."""
    dataset: str
    """The task of `training.tasks` whose images it was tuned on."""
    backbone: Backbone
    method: Method
    form: Literal["split", "merged"]
    """`split`: the experts are still apart, as tuning leaves them; `merged`: one complete adapter."""
    adapter: AdapterConfig | None
    """None for probes, which have only a head, and for methods that tune the backbone's own parameters."""
    features: Features = "cls"
    """What the head reads; all but the default only in probes."""
    unknown: Literal["relative"] | None = None
    """How the bundle tells unknown images, by `mosa_deploy.bundles.feature_statistics`; None if it cannot."""
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    per_label: PerLabel | None = None
    """How each label is answered by itself, in a task with several labels per image, which has no temperature; None in
    a task with one class per image."""
    metrics: dict[str, float]
    seed: int
    versions: dict[str, str]
    git_commit: str | None
    sha256: str = ""
    """Hash of `adapter.safetensors`; empty until the bundle is saved."""

    @model_validator(mode="after")
    def _can_be_on_a_swin(self) -> Self:
        if self.backbone.stages and self.adapter is not None and self.adapter.style != "parallel":
            raise ValueError(f"{self.method} on {self.backbone.name}: {SWIN_ADVICE}")
        return self

    @model_validator(mode="after")
    def _reads_what_its_method_can(self) -> Self:
        only = {"linear": get_args(LinearFeatures), "attentive": ("attended",)}.get(self.method, ("cls",))
        if self.features not in only or (self.backbone.stages and self.features != "cls"):
            raise ValueError(f"a head on the features {self.features}: {self.method} on {self.backbone.name} has none")
        return self

    @model_validator(mode="after")
    def _answers_each_label(self) -> Self:
        if self.per_label is not None and len(self.per_label.thresholds) != len(self.classes):
            raise ValueError(f"{len(self.per_label.thresholds)} thresholds for {len(self.classes)} classes")
        return self

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.per_label is not None

    @property
    def thresholds(self) -> Thresholds:
        """The threshold of each label; None if an image has one class."""
        return None if self.per_label is None else self.per_label.thresholds

    def scores(self, logits: Array) -> Array:
        """Calibrated probabilities, (..., K) -> (..., K)."""
        return probabilities(logits, self.temperature) if self.per_label is None else self.per_label.scores(logits)

    def decide(self, logits: Array) -> Decisions:
        """Which classes are answered, (..., K) -> (..., K)."""
        return decide(logits if self.per_label is None else self.scores(logits), self.thresholds)

    def module_shape(self, module: str) -> tuple[int, int]:
        """(outputs, inputs) of a linear layer or norm in a plain block of the backbone.

        Raises:
            BundleError: the record does not say how wide the FFN is.
        """
        width, hidden = self.backbone.embed_dim, self.backbone.hidden
        if module.startswith(("attn", "norm")):
            return {"attn.qkv": (3 * width, width)}.get(module, (width, width))
        if hidden is None:
            raise BundleError(f"'{self.task}' updates {module}, but its record lacks backbone.hidden: convert it again")
        return {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}[module]

    @property
    def tunes_backbone(self) -> bool:
        """Whether it changes parameters of the backbone itself, so that only a folded graph can serve it."""
        return self.method in BACKBONE_METHODS

    @property
    def sequential(self) -> bool:
        """Whether its adapters read what a block has written, so that only its own exported graph can serve it."""
        return self.adapter is not None and self.adapter.style in SEQUENTIAL_STYLES


def read_record(folder: Path) -> Record:
    """Read the record of the bundle in a folder.

    Raises:
        BundleError: the file is missing, the folder's run perhaps not finished; or it is not a valid record, or was
            written by a newer release.
    """
    path = folder / RECORD
    try:
        content = path.read_bytes()
    except OSError as error:
        if (folder / CHECKPOINT).is_file():
            raise BundleError(f"{folder} is a run that is not finished: go on with its command and --resume") from None
        raise BundleError(f"{path}: {error.strerror}; a bundle is {TENSORS} with {RECORD}") from None
    return parse_record(content, str(path))


def parse_record(content: bytes, where: str) -> Record:
    """Check the bytes of an `adapter.json`; errors call it `where`.

    Raises:
        BundleError: it is not a valid record, or was written by a newer release.
    """
    try:
        fields = RECORD_FORMAT.upgrade(json.loads(content), where)
    except (ValueError, AttributeError, RecursionError):
        raise BundleError(f"{where} is not a JSON object: {RECORD_FORMAT.remedy}") from None
    try:
        return Record.model_validate(fields)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise BundleError(f"{where}: {'; '.join(faults)}") from None
    except ConfigError as error:
        raise BundleError(f"{where}: adapter: {error}") from None
