"""Save what a user tuned in a training loop of their own as a bundle."""

from collections.abc import Sequence
from typing import Any, cast

import timm.data
import torch

from mosa_deploy.adapters.attach import split_layers, task_state
from mosa_deploy.adapters.probe import Probe, TunedModel, plain_backbone
from mosa_deploy.adapters.restore import describe_backbone
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import Source
from mosa_deploy.bundles.adapter_config import AdapterConfig, BackboneMethod, Method
from mosa_deploy.bundles.answers import PerLabel
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.canary import SIZE, Canary
from mosa_deploy.bundles.preprocess import Array, Preprocess
from mosa_deploy.bundles.probe_features import Features
from mosa_deploy.bundles.record import Backbone, Record
from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.files import Content, FilePath, read_content
from mosa_deploy.utils.versions import git_commit, library_versions


def save_bundle(
    model: TunedModel,
    config: AdapterConfig | None,
    folder: FilePath,
    *,
    task: str,
    classes: Sequence[str],
    images: Sequence[Content],
    preprocess: Preprocess | None = None,
    temperature: float = 1.0,
    per_label: PerLabel | None = None,
    backbone: str | None = None,
    source: Source = "pretrained",
    method: BackboneMethod | None = None,
    tuned_from: Backbone | None = None,
) -> Bundle:
    """Write the adapters and the head of a tuned model, or a probe, as a bundle for `mosa export` and the service.

    `config` is what was attached, None for a head alone. `classes` are the names of the head's outputs, in their order.
    The first eight of `images`, encoded or as paths, become the canary: the service and every export prove with them
    that they answer as this model does now. `preprocess` is timm's evaluation transform of the model if None.
    `per_label` says that an image may have several labels, and how they are answered: `PerLabel.uncalibrated(K)` if
    nothing was calibrated.
    `backbone` is timm's name, that of the model's pretrained config if None; `source` says where its weights came from.
    If the backbone itself was tuned, after `freeze(model, method)`, `method` is `full` or `bitfit` and `tuned_from` is
    what `describe_backbone` said before.

    Raises:
        ConfigError: no images, as many classes as the head has not, or only one of `method` and `tuned_from`.
        DataError: an image cannot be read.
        BundleError: a tensor is not finite.
    """
    head, plain = model.get_classifier(), plain_backbone(model)
    outputs = getattr(head, "out_features", 0)
    if len(classes) != outputs:
        raise ConfigError(f"{len(classes)} classes for a head of {outputs} outputs: name each output once")
    if per_label is not None and len(per_label.thresholds) != outputs:
        raise ConfigError(f"per_label has {len(per_label.thresholds)} thresholds for a head of {outputs} outputs")
    if not images:
        raise ConfigError(f"'{task}' needs images: give some of validation, the first {SIZE} become its canary")
    if (method is None) != (tuned_from is None) or (method and config):
        raise ConfigError(
            f"'{task}' by method {method}: full and bitfit come without a config and with tuned_from, which is what"
            " describe_backbone said of the backbone before it was tuned"
        )
    if preprocess is None:
        preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(plain))
    features: Features = model.features if isinstance(model, Probe) else "cls"
    training, device = model.training, next(model.parameters()).device
    model.eval()

    def answer(inputs: Array) -> Array:
        with torch.inference_mode():
            return record.scores(model(torch.from_numpy(inputs).to(device)).cpu().numpy())

    record = Record(
        task=task,
        dataset="folder",
        backbone=tuned_from or describe_backbone(backbone or _timm_name(plain), source, plain),
        method=method or ("attentive" if features == "attended" else _method(config)),
        features=features,
        form="split" if split_layers(model) else "merged",
        adapter=config,
        classes=tuple(classes),
        preprocess=preprocess,
        temperature=temperature,
        per_label=per_label,
        metrics={},
        seed=0,
        versions=library_versions(),
        git_commit=git_commit(),
    )
    canary = Canary.record([read_content(image) for image in images[:SIZE]], preprocess, answer)
    model.train(training)
    tensors = {name: value.cpu().numpy() for name, value in task_state(model, record.method).items()}
    return Bundle(record, tensors, canary).save(folder)


def _method(config: AdapterConfig | None) -> Method:
    if config is None:
        return "linear"
    match config.style:
        case "low-rank":
            return "mosl" if config.experts > 1 else "lora"
        case "ssf":
            return "ssf"
        case "repadapter" if config.experts == 1:
            return "repadapter"
        case _:
            return "mosa" if config.experts > 1 else "adapter"


def _timm_name(model: Transformer) -> str:
    known = cast(dict[str, Any], model.pretrained_cfg)
    return ".".join(part for part in (known.get("architecture"), known.get("tag")) if part)
