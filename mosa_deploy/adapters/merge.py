"""Merge: the experts of every adapter become one complete adapter, after tuning."""

from typing import TypeVar

import torch
from torch import nn

from mosa_deploy.adapters.parallel import Bottleneck
from mosa_deploy.errors import BundleError

Model = TypeVar("Model", bound=nn.Module)


def merge(model: Model) -> Model:
    """Merge every adapter of `model` in place and return it; merging again changes nothing.

    The merged adapter is the expectation over the draw of the expert: U_bar = U / E, u_bar = mean of the biases,
    and for a split down projection D_bar = D0 + Delta / E (arXiv 2312.02923, section 3.3). A `merge_scale` in the
    adapter's settings stands in for 1 / E.

    Raises:
        BundleError: an adapter holds a value that is not finite; nothing is merged.
    """
    adapters = {name: part for name, part in model.named_modules() if isinstance(part, Bottleneck)}
    for name, adapter in adapters.items():
        for parameter, value in adapter.named_parameters():
            if not torch.isfinite(value).all():
                raise BundleError(f"{name}.{parameter} holds NaN or infinity: tune again with a lower --lr")
    for adapter in adapters.values():
        adapter.merge_()
    return model
