"""A task from what PEFT, transformers or timm left: its method and its own tensors, by timm's names."""

import copy
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from export.chosen import Library
from export.facts import Fact
from export.heads import checkpoint_notes, read_head_alone
from export.options import ConvertConfig
from export.peft_adapter import PeftAdapter
from export.peft_merge import merge_adapter, merge_head
from mosa_deploy.backbones.checkpoints import find_source, load_weights, read_head, source_args
from mosa_deploy.backbones.foldable import Vit
from mosa_deploy.backbones.load import fingerprint
from mosa_deploy.backbones.transformers import CONFIG_FILE, layer_norm_eps, model_args, tokens_beside
from mosa_deploy.backbones.transformers_names import CLIP, TIMMS, check_head_input
from mosa_deploy.bundles.adapter_config import TARGET_SLICES, AdapterConfig, Method
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.errors import BundleError

FROM_TIMM, FROM_PEFT = "--from timm", "--from peft"


@dataclass(frozen=True)
class Task:
    """How a task was tuned, and its own tensors, including the head."""

    method: Method
    tensors: dict[str, Tensor]
    adapter: AdapterConfig | None = None
    classes: tuple[str, ...] = ()
    """The class names, where the source has them beside the head."""
    library: Library = "timm"
    """With which it was tuned: each reads images in its own way."""
    eps: float | None = None
    """The eps of its LayerNorms, if the source is a whole model, or one of transformers."""
    notes: tuple[str, ...] = ()
    """What the source does not say, and how it was taken."""

    @property
    def of_transformers(self) -> bool:
        """Whether it was tuned with transformers."""
        return self.library == "transformers"


def shown_by_names(config: ConvertConfig, adapter: PeftAdapter | None) -> list[Fact[ModelArgs]]:
    """What the names of a source's tensors say of its model, if it is one of transformers: its tokens and its pooling.

    Raises:
        BackboneError: the source cannot be read, or is of a model that cannot be converted.
    """
    if adapter is None:
        args = source_args(config.path, FROM_TIMM)
    else:
        family = adapter.family(has_class_token=_is_clip(config))
        args = TIMMS if family is None else family.args
    base = tokens_beside(config.backbone_weights)
    where = f"the names of the tensors in {config.path}"
    return [Fact(args, where), Fact(base, f"{CONFIG_FILE} beside {config.backbone_weights}")]


def _is_clip(config: ConvertConfig) -> bool:
    """Whether the model that an adapter was tuned on is a CLIP, if it is a CLIP or a SigLIP."""
    if config.backbone_weights is None:
        return "siglip" not in config.backbone
    found = find_source(config.backbone_weights, "--backbone-weights")
    return found is not None and found.family is CLIP


def of_peft(config: ConvertConfig, adapter: PeftAdapter, model: Vit) -> Task:
    """A LoRA task from an adapter of PEFT, or a full one if it tuned more than low-rank updates of a block's layers.

    The scaling factors are absorbed into B. Updates of lower rank are padded with zeros to the largest rank.

    Raises:
        BackboneError: the adapter's head reads other tokens than this backbone's.
        BundleError: the adapter updates a head that is not given, or does not fit the backbone.
    """
    where = f"{FROM_PEFT} {config.path}"
    head = dict(adapter.head) or merge_head(adapter, _base_head(config, model, where), where)
    family = adapter.family(has_class_token=model.cls_token is not None)
    if family is not None:
        check_head_input(model, family, head["head.weight"].shape[1], where)
    made = partial(
        Task,
        library="timm" if family is None else "transformers",
        eps=None if family is None else model_args({}, family.name).norm_eps,
        notes=adapter.notes,
    )
    if not adapter.is_low_rank:
        return made("full", merge_adapter(adapter, model.state_dict(), where) | head)
    if not adapter.updates:
        return made("linear", head)
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
    return made("lora", tensors, settings)


def _base_head(config: ConvertConfig, model: Vit, where: str) -> dict[str, Tensor]:
    """The head of the model before tuning, which the adapter updates."""
    if config.backbone_weights is None:
        raise BundleError(
            f"{where} updates the head of its base model, which it does not hold: give the checkpoint that was tuned,"
            " with its head, as --backbone-weights"
        )
    return read_head(config.backbone_weights, model.state_dict(), "--backbone-weights").tensors


def of_timm(config: ConvertConfig, model: Vit) -> Task:
    """A linear task from a checkpoint or a head alone, or a full one if another parameter differs from the backbone's.

    Raises:
        BackboneError: the checkpoint cannot be read or does not fit.
    """
    alone = read_head_alone(config.path, model.num_features, FROM_TIMM)
    if alone is not None:
        return Task("linear", alone.tensors, classes=alone.classes, notes=alone.notes)
    head = read_head(config.path, model.state_dict(), FROM_TIMM)
    tuned = copy.deepcopy(model)
    found = load_weights(tuned, config.backbone, config.path, FROM_TIMM)
    if found.family is not None:
        check_head_input(model, found.family, head.weight.shape[1], f"{FROM_TIMM} {config.path}")
    linear = fingerprint(tuned.state_dict()) == fingerprint(model.state_dict())
    return Task(
        method="linear" if linear else "full",
        tensors=head.tensors if linear else tuned.state_dict() | head.tensors,
        library="transformers" if found.family else "torchvision" if found.of_torchvision else "timm",
        eps=layer_norm_eps(tuned),
        notes=tuple(checkpoint_notes(found, head, model.global_pool)),
    )
