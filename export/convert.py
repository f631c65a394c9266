"""Convert a model tuned elsewhere into a bundle: `mosa convert --from peft|timm PATH --name TASK --backbone NAME`.

    peft    a LoRA adapter on a ViT of timm or transformers becomes a merged `lora` bundle
    timm    a checkpoint with its head becomes a `linear` bundle if the backbone is unchanged, else a `full` one

The bundle gives the same answers as the source library, and is exported and served like any other bundle.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm.data
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from export.arguments import convert_config
from export.class_names import class_names
from export.heads import checkpoint_notes, read_head_alone
from export.options import ConvertConfig
from export.peft_adapter import PeftAdapter, read_peft
from export.peft_merge import merge_adapter, merge_head
from export.processor import read_processor
from export.sample_images import read_images, sample_images, smooth_noise
from mosa_deploy.adapters.restore import describe_backbone, restore
from mosa_deploy.backbones.checkpoints import load_weights, read_head
from mosa_deploy.backbones.load import Weights, fingerprint, load_backbone
from mosa_deploy.backbones.transformers import DEFAULT_EPS, layer_norm_eps
from mosa_deploy.backbones.transformers_names import check_head_input
from mosa_deploy.bundles.adapter_config import TARGET_SLICES, AdapterConfig, Method
from mosa_deploy.bundles.bundle import Bundle, Tensors, check_tensors, expected_shapes
from mosa_deploy.bundles.calibration import Samples, write_samples
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.preprocess import Array, Pixels, Preprocess, probabilities
from mosa_deploy.bundles.record import Record
from mosa_deploy.errors import BackboneError, BundleError, ConfigError, command
from mosa_deploy.utils.files import replacing_folder
from mosa_deploy.utils.versions import git_commit, library_versions

DATASET = "folder"
"""The task of `training.tasks` with which a converted bundle is evaluated: a folder of the user's images."""

FROM_TIMM, FROM_PEFT = "--from timm", "--from peft"


@dataclass(frozen=True)
class Task:
    """How a task was tuned, and its own tensors, including the head."""

    method: Method
    tensors: dict[str, Tensor]
    adapter: AdapterConfig | None = None
    classes: tuple[str, ...] = ()
    """The class names, where the source has them beside the head."""
    notes: tuple[str, ...] = ()
    """What the source does not say, and how it was taken."""


def convert(config: ConvertConfig) -> Path:
    """Write the bundle and return its folder.

    Raises:
        MosaError: the source cannot be read or converted; nothing is written then.
    """
    out = config.out or Path("runs") / config.name
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty: choose another --out")
    paths = None if config.images is None else sample_images(config.images)
    given = None if config.preprocess is None else read_processor(config.preprocess)
    weights = Weights.choose(config.backbone_weights, config.random_weights)
    # The adapter before the backbone: an adapter that cannot be converted is refused before a download.
    adapter = read_peft(config.path, config.adapter) if config.source == "peft" else None
    model = load_backbone(config.backbone, weights, img_size=given.size if given else config.image_size)
    if not isinstance(model, VisionTransformer):
        raise BackboneError(f"--backbone {config.backbone}: only tasks of ViTs can be brought; tune one on this Swin")
    preprocess = given or Preprocess.from_timm(timm.data.resolve_model_data_config(model))
    task = of_timm(config, model) if adapter is None else of_peft(config, adapter, model)
    record = Record(
        task=config.name,
        dataset=DATASET,
        backbone=describe_backbone(config.backbone, weights.source, model),
        method=task.method,
        form="merged",
        adapter=task.adapter,
        classes=class_names(config.classes, config.path, len(task.tensors["head.weight"]), task.classes),
        preprocess=preprocess,
        temperature=1.0,
        metrics={},
        seed=0,
        versions=library_versions(),
        git_commit=git_commit(),
    )
    tensors = padded(record, task.tensors)
    samples, calibration = (smooth_noise(preprocess.size), None) if paths is None else read_images(paths, preprocess)
    bundle = write(out, record, tensors, weights, samples, calibration)
    for note in task.notes:
        print(f"{config.path}: {note}")
    print(f"{config.name}: {report(record)}; bundle {bundle.digest[:12]} in {out}")
    if calibration is None:
        print("its canary is smooth noise: give --images FOLDER to use the task's images, which int8 needs")
    return out


def of_peft(config: ConvertConfig, adapter: PeftAdapter, model: VisionTransformer) -> Task:
    """A LoRA task from an adapter of PEFT, or a full one if it tuned more than low-rank updates of a block's layers.

    The scaling factors are absorbed into B. Updates of lower rank are padded with zeros to the largest rank.

    Raises:
        BackboneError: the adapter's head reads other tokens than this backbone's.
        BundleError: the adapter updates a head that is not given, or does not fit the backbone.
    """
    where = f"{FROM_PEFT} {config.path}"
    head = dict(adapter.head) or merge_head(adapter, _base_head(config, model, where), where)
    family = adapter.family(has_class_token=model.has_class_token)
    if family is not None:
        check_head_input(model, family, head["head.weight"].shape[1], where)
    if adapter.of_transformers and layer_norm_eps(model) > DEFAULT_EPS and config.backbone_weights is None:
        print(
            f"a ViT of transformers has layer_norm_eps {DEFAULT_EPS:g} unless its config says otherwise, this backbone"
            f" {layer_norm_eps(model):g}: for answers that agree to 1e-5 give its own weights with --backbone-weights"
        )
    if not adapter.is_low_rank:
        return Task("full", merge_adapter(adapter, model.state_dict(), where) | head, notes=adapter.notes)
    if not adapter.updates:
        return Task("linear", head, notes=adapter.notes)
    settings = AdapterConfig(
        bottleneck=adapter.rank,
        experts=1,
        scale=1.0,
        dropout=adapter.dropout,
        style="low-rank",
        targets=adapter.targets,
    )
    tensors = head
    for (block, target), update in adapter.updates.items():
        layer = f"blocks.{block}.{TARGET_SLICES[target].module}.adapter.{target}"
        rest = adapter.rank - len(update.down)
        tensors[f"{layer}.down.weight"] = F.pad(update.down, (0, 0, 0, rest))
        tensors[f"{layer}.up.weight"] = F.pad(update.up, (0, rest))
    return Task("lora", tensors, settings, notes=adapter.notes)


def _base_head(config: ConvertConfig, model: VisionTransformer, where: str) -> dict[str, Tensor]:
    """The head of the model before tuning, which the adapter updates."""
    if config.backbone_weights is None:
        raise BundleError(
            f"{where} updates the head of its base model, which it does not hold: give the checkpoint that was tuned,"
            " with its head, as --backbone-weights"
        )
    return read_head(config.backbone_weights, model.state_dict(), "--backbone-weights").tensors


def of_timm(config: ConvertConfig, model: VisionTransformer) -> Task:
    """A linear task from a checkpoint or a head alone, or a full one if another parameter differs from the backbone's.

    Raises:
        BackboneError: the checkpoint cannot be read or does not fit, or its LayerNorms have another eps than the
            backbone's.
    """
    alone = read_head_alone(config.path, model.num_features, FROM_TIMM)
    if alone is not None:
        return Task("linear", alone.tensors, classes=alone.classes, notes=alone.notes)
    head = read_head(config.path, model.state_dict(), FROM_TIMM)
    tuned = copy.deepcopy(model)
    found = load_weights(tuned, config.backbone, config.path, FROM_TIMM)
    if found.family is not None:
        check_head_input(model, found.family, head.weight.shape[1], f"{FROM_TIMM} {config.path}")
    if layer_norm_eps(tuned) != layer_norm_eps(model):
        raise BackboneError(
            f"{FROM_TIMM} {config.path} has layer_norm_eps {layer_norm_eps(tuned):g}, the backbone"
            f" {layer_norm_eps(model):g}: give the checkpoint itself as --backbone-weights, or the one that it was"
            " tuned from"
        )
    notes = tuple(checkpoint_notes(found, head, model.global_pool))
    if fingerprint(tuned.state_dict()) == fingerprint(model.state_dict()):
        return Task("linear", head.tensors, notes=notes)
    return Task("full", tuned.state_dict() | head.tensors, notes=notes)


def padded(record: Record, tensors: dict[str, Tensor]) -> Tensors:
    """The bundle's tensors, with zeros for targets that a block does not update.

    Raises:
        BundleError: tensors do not fit the backbone; names all of them.
    """
    own: Tensors = {name: np.ascontiguousarray(value.numpy()) for name, value in tensors.items()}
    updates = {name: shape for name, shape in expected_shapes(record).items() if name.startswith("blocks.")}
    whole = {name: np.zeros(shape, dtype=np.float32) for name, shape in updates.items()} | own
    check_tensors(record, whole)
    return whole


def write(
    out: Path, record: Record, tensors: Tensors, weights: Weights, samples: list[bytes], calibration: Pixels | None
) -> Bundle:
    """Record the canary with the restored model, and write the bundle and calibration images in one step."""
    model = restore(Bundle(record, tensors, Canary((), np.empty((0, 0), dtype=np.float32))), weights)

    def answer(images: Array) -> Array:
        with torch.inference_mode():
            return probabilities(model(torch.from_numpy(images)).numpy(), record.temperature)

    canary = Canary.record(samples, record.preprocess, answer)
    with replacing_folder(out) as aside:
        if calibration is not None:
            write_samples(aside, Samples.unlabelled(calibration))
        return Bundle(record, tensors, canary).save(aside)


def report(record: Record) -> str:
    """One line about the converted task."""
    adapter = record.adapter
    what = f"{record.method} on {record.backbone.name}, {len(record.classes)} classes"
    if adapter is not None:
        return f"{what}, rank {adapter.bottleneck} on {', '.join(adapter.targets)} of {record.backbone.depth} blocks"
    return f"{what}, a head alone" if record.method == "linear" else f"{what}, all its parameters: the folded lane only"


@command
def main() -> None:
    """The command line."""
    convert(convert_config())


if __name__ == "__main__":
    main()
