"""Restore: a bundle becomes the tuned torch model again, on the backbone that its record describes."""

import torch

from mosa_deploy.adapters.attach import attach, backbone_state, load_task_state
from mosa_deploy.adapters.probe import TunedModel, with_features
from mosa_deploy.backbones.foldable import Transformer, topology_of
from mosa_deploy.backbones.function import departures, pinned
from mosa_deploy.backbones.load import Source, Weights, fingerprint, load_backbone
from mosa_deploy.backbones.names import FROM_INDEX
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.record import Backbone, Record
from mosa_deploy.errors import BackboneError


def restore(bundle: Bundle, weights: Weights | None = None) -> TunedModel:
    """The tuned model of a bundle, in evaluation mode: images (B, 3, H, W) -> logits (B, K).

    Its adapters are split or merged, as the bundle has them. `weights` are those that the task was tuned on; None means
    timm's pretrained or random ones, as the record says.

    Raises:
        BackboneError: the task was tuned on other weights, or on weights from a file that is not given, or has other
            tensors than the model.
    """
    record = bundle.record
    weights = weights or Weights("random" if record.backbone.source == "random" else "pretrained")
    if record.backbone.source == "file" and weights.source != "file":
        raise BackboneError(f"'{record.task}' was tuned on weights from a file: give it again with --backbone-weights")
    model = load_recorded(record, weights)
    found = fingerprint(model.state_dict(), record.backbone.model_args)
    if found != record.backbone.sha256:
        raise BackboneError(
            f"'{record.task}' was tuned on {record.backbone.folder}, these weights of {record.backbone.name} have"
            f" sha256 {found[:8]}: give the same weights with --backbone-weights, or tune the task again"
        )
    state = {name: torch.tensor(value) for name, value in bundle.tensors.items()}
    tuned = with_features(model, record.features, len(record.classes))
    if record.adapter is not None:
        attach(model, record.adapter, split=record.form == "split")
    load_task_state(tuned, state, record.method)
    return tuned.eval()


def load_recorded(record: Record, weights: Weights, classes: int = 0) -> Transformer:
    """The backbone that a record describes, with a fresh head of `classes` outputs; its weights are not compared.

    Raises:
        BackboneError: the weights cannot be had or do not fit.
    """
    name, args = record.backbone.name, record.backbone.model_args
    if args is not None:
        args = pinned(name, args)
    return load_backbone(name, weights, classes, record.preprocess.size, args)


def describe_backbone(name: str, source: Source, model: Transformer) -> Backbone:
    """What a record says of a backbone, which may have a head and adapters already."""
    topology, state = topology_of(model), backbone_state(model)
    # The FFNs of a Swin differ in width, and no adapter updates their weights.
    hidden = None if topology.stages else len(state["blocks.0.mlp.fc1.bias"])
    args = departures(name, model)
    return Backbone(
        name=name,
        source=source,
        sha256=fingerprint(state, args),
        depth=topology.depth,
        embed_dim=topology.width,
        stages=topology.stages,
        hidden=hidden,
        model_args=args,
        about=FROM_INDEX[name].about if name in FROM_INDEX and source == "pretrained" else None,
    )
