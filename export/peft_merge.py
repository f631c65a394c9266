"""Merge an adapter of PEFT into the weights of its base model, exactly, in the names of timm."""

from collections.abc import Mapping

import torch
from torch import Tensor

from export.peft_adapter import Change, PeftAdapter
from mosa_deploy.backbones.checkpoints import HEAD
from mosa_deploy.backbones.eva_names import eva_name
from mosa_deploy.errors import BundleError

QKV = ("q", "k", "v")


def merge_adapter(adapter: PeftAdapter, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tuned backbone's tensors, from those of the backbone before tuning.

    Raises:
        BundleError: an update does not fit its layer; all of them are named.
    """
    merged = {name: value.clone() for name, value in state.items()}
    faults = []
    for name, value in adapter.whole.items():
        module, _, part = name.rpartition(".")
        target = _parameter(merged, module, part) if module else merged.get(name)
        if target is None or target.shape != value.shape:
            faults.append(name)
        else:
            target.copy_(value)
    for module, change in adapter.changes.items():
        weight, bias = _parameter(merged, module, "weight"), _parameter(merged, module, "bias")
        if module != "head" and (weight is None or not _apply(change, weight, bias)):
            faults.append(module)
    if faults:
        lacking = any(name.endswith(".bias") and eva_name(name) != name for name in faults)
        model = (
            "same DINOv3 with biases of q and v, whose name ends in _qkvb" if lacking else "ViT that it was tuned on"
        )
        raise BundleError(f"{where} does not fit the backbone, in {', '.join(sorted(faults))}: give the {model}")
    return merged


def merge_head(adapter: PeftAdapter, head: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tuned head, from that of the base model.

    Raises:
        BundleError: the update does not fit it.
    """
    merged = {name: head[name].clone() for name in HEAD}
    if not _apply(adapter.changes["head"], merged["head.weight"], merged["head.bias"]):
        raise BundleError(
            f"{where} updates a head of another shape than {tuple(merged['head.weight'].shape)}: give the model with"
            " the head that it was tuned on as --backbone-weights"
        )
    return merged


def _parameter(state: Mapping[str, Tensor], module: str, part: str) -> Tensor | None:
    """A parameter by the name that timm's ViT has for it; q, k and v are the rows of qkv that they are joined to."""
    outer, _, last = module.rpartition(".")
    joined = state.get(f"{outer}.qkv.{part}") if last in QKV else None
    if joined is not None:
        return joined.chunk(3)[QKV.index(last)]
    name = f"{module}.{part}"
    return state.get(name, state.get(eva_name(name)))


@torch.no_grad()
def _apply(change: Change, weight: Tensor, bias: Tensor | None) -> bool:
    """Change a layer in place; False if the change does not fit it."""
    if change.factor is not None:
        return _apply_factor(change.factor, weight, bias)
    assert change.update is not None
    down, up = change.update.down.flatten(1).double(), change.update.up.flatten(1).double()
    if (len(up), down.shape[1]) != (len(weight), weight[0].numel()):
        return False
    tuned = weight.flatten(1).double() + up @ down
    if change.magnitude is not None:
        if len(change.magnitude) != len(tuned):
            return False
        tuned *= (change.magnitude.double() / tuned.norm(dim=1))[:, None]
    weight.copy_(tuned.reshape(weight.shape))
    if change.bias is not None:
        if bias is None or bias.shape != change.bias.shape:
            return False
        bias += change.bias
    return True


def _apply_factor(factor: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if factor.shape not in ((len(weight), 1), (1, weight.shape[1])) or weight.ndim != 2:
        return False
    weight *= factor
    if bias is not None and factor.shape[1] == 1:
        bias *= factor[:, 0]
    return True
