"""Convert a model tuned elsewhere into a bundle: `mosa convert --from peft|timm PATH --name TASK --backbone NAME`.

    peft    a LoRA adapter on a ViT of timm or transformers becomes a merged `lora` bundle
    timm    a checkpoint with its head becomes a `linear` bundle if the backbone is unchanged, else a `full` one

The bundle gives the same answers as the source library, and is exported and served like any other bundle.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.accuracy import BLIND, check_accuracy
from export.arguments import convert_config
from export.chosen import choose_model_args, fit_eps, given_or_found, resampled, taken, timms_own, untold
from export.class_names import class_names
from export.facts import Fact, gather
from export.geometry import find_geometry, trained_at
from export.options import ConvertConfig
from export.peft_adapter import read_peft
from export.sample_images import DrawnImages, check_labels, read_images, sample_images, smooth_noise
from export.sources import Task, of_peft, of_timm, shown_by_names
from mosa_deploy.adapters.restore import describe_backbone, restore
from mosa_deploy.backbones.foldable import Vit
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.answers import PerLabel
from mosa_deploy.bundles.bundle import Bundle, Tensors, check_tensors, expected_shapes
from mosa_deploy.bundles.calibration import Samples, write_samples
from mosa_deploy.bundles.canary import Canary
from mosa_deploy.bundles.preprocess import Array, Preprocess
from mosa_deploy.bundles.record import Backbone, Record
from mosa_deploy.errors import BackboneError, BundleError, ConfigError, command
from mosa_deploy.utils.files import replacing_folder
from mosa_deploy.utils.versions import git_commit, library_versions

DATASET = "folder"
"""The task of `training.tasks` with which a converted bundle is evaluated: a folder of the user's images."""

BATCH = 16
"""Images in one forward pass."""


def convert(config: ConvertConfig) -> Path:
    """Write the bundle and return its folder.

    Raises:
        MosaError: the source cannot be read or converted; nothing is written then.
    """
    out = config.out or Path("runs") / config.name
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty: choose another --out")
    images = None if config.images is None else sample_images(config.images)
    # The adapter before the backbone: an adapter that cannot be converted is refused before a download.
    adapter = read_peft(config.path, config.adapter) if config.source == "peft" else None
    facts = gather(config)
    processor = given_or_found(config, facts)
    args = choose_model_args([*facts.shown, *facts.model_args, *shown_by_names(config, adapter)], config.model_args)
    weights = Weights.choose(config.backbone_weights, config.random_weights)
    trained = trained_at(find_geometry(config))
    size = processor.value.size if processor else config.image_size or (trained.value if trained else None)
    model = load_backbone(config.backbone, weights, img_size=size, model_args=args.value)
    if not isinstance(model, Vit):
        raise BackboneError(f"--backbone {config.backbone}: only tasks of ViTs can be brought; tune one on this Swin")
    task = of_timm(config, model) if adapter is None else of_peft(config, adapter, model)
    check_finite(config, task)
    if task.classes:
        facts.names.insert(0, Fact(task.classes, f"classes_ in {config.path}"))
    facts.notes += [f"{config.path}: {note}" for note in task.notes]
    facts.notes += fit_eps(model, args.value, task.eps)
    folders = images.folders if images else ()
    count, natural = len(task.tensors["head.weight"]), not task.of_transformers
    names = class_names(config.classes, facts, folders, count=count, path=config.path, natural=natural)
    if images is not None and facts.multi_label is None:
        check_labels(images, names, config.min_accuracy)
    preprocess = processor or timms_own(config.backbone, model, task.library)
    facts.notes += resampled(facts.image_size or trained, preprocess.value, task.of_transformers)
    facts.notes += untold(config, facts, model)
    backbone = describe_backbone(config.backbone, weights.source, model)
    record = describe(config.name, task, backbone, names.value, preprocess.value)
    if facts.multi_label:
        facts.notes.append(several(facts.multi_label, config.min_accuracy))
        record = record.model_copy(update={"per_label": PerLabel.uncalibrated(len(names.value))})
    for line in (*facts.notes, *taken(record, preprocess, names, args.where or "the source")):
        print(line)
    tensors = padded(record, task.tensors)
    one_class = names.known and not record.multi_label
    drawn = None if images is None else read_images(images, record.preprocess, one_class)
    bundle = write(out, record, tensors, weights, drawn, config.min_accuracy)
    print(f"{config.name}: {report(record)}; bundle {bundle.digest[:12]} in {out}")
    if drawn is None:
        print("its canary is smooth noise: give --images FOLDER to use the task's images, which int8 needs")
    return out


def describe(name: str, task: Task, backbone: Backbone, classes: tuple[str, ...], preprocess: Preprocess) -> Record:
    """The record of a converted task: it was tuned elsewhere, so it has no metrics, seed or temperature of ours."""
    return Record(
        task=name,
        dataset=DATASET,
        backbone=backbone,
        method=task.method,
        form="merged",
        adapter=task.adapter,
        classes=classes,
        preprocess=preprocess,
        temperature=1.0,
        metrics={},
        seed=0,
        versions=library_versions(),
        git_commit=git_commit(),
    )


def several(where: str, min_accuracy: float | None) -> str:
    """What to know of a converted task with several labels per image.

    Raises:
        ConfigError: an accuracy is asked for, and folders cannot say which labels an image has.
    """
    if min_accuracy is not None:
        raise ConfigError(f"--min-accuracy: an image may have several labels ({where}), which no folder says: drop it")
    return (
        f"an image may have several labels: {where}. Each is answered from a score of 0.5 on, which was chosen on no"
        " images: a request's `threshold` takes its place"
    )


def check_finite(config: ConvertConfig, task: Task) -> None:
    """Raises BundleError if a tensor of the task holds NaN or infinity."""
    odd = [name for name, value in task.tensors.items() if not value.isfinite().all()]
    if odd:
        raise BundleError(
            f"--from {config.source} {config.path} holds NaN or infinity, in {', '.join(odd[:3])}: bring a checkpoint"
            " from before it diverged"
        )


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
    out: Path,
    record: Record,
    tensors: Tensors,
    weights: Weights,
    drawn: DrawnImages | None,
    min_accuracy: float | None,
) -> Bundle:
    """Measure the restored model, record the canary with it, and write bundle and calibration images in one step.

    Raises:
        ConfigError: the accuracy on the images is below the minimum.
    """
    model = restore(Bundle(record, tensors, Canary((), np.empty((0, 0), dtype=np.float32))), weights)

    def answer(images: Array) -> Array:
        with torch.inference_mode():
            logits = [model(batch) for batch in torch.from_numpy(images).split(BATCH)]
        return record.scores(torch.cat(logits).numpy())

    if drawn is not None and any(label is not None for label in drawn.labels):
        given = answer(record.preprocess.normalise(drawn.pixels))
        print(check_accuracy(given, drawn.labels, record.classes, min_accuracy))
        print(BLIND)
    first = smooth_noise(record.preprocess.size) if drawn is None else drawn.first
    canary = Canary.record(first, record.preprocess, answer)
    with replacing_folder(out) as aside:
        if drawn is not None:
            write_samples(aside, Samples.unlabelled(drawn.pixels))
        return Bundle(record, tensors, canary).save(aside)


def report(record: Record) -> str:
    """One line about the converted task."""
    adapter = record.adapter
    kind = "labels, of which an image may have several" if record.multi_label else "classes"
    what = f"{record.method} on {record.backbone.name}, {len(record.classes)} {kind}"
    if adapter is not None:
        return f"{what}, rank {adapter.bottleneck} on {', '.join(adapter.targets)} of {record.backbone.depth} blocks"
    return f"{what}, a head alone" if record.method == "linear" else f"{what}, all its parameters: the folded lane only"


@command
def main() -> None:
    """The command line."""
    convert(convert_config())


if __name__ == "__main__":
    main()
