"""Merge: the experts of every adapter become one complete adapter, after tuning."""

from typing import TypeVar

import torch
from torch import nn

from mosa_deploy.adapters.bottleneck import Adapter
from mosa_deploy.errors import BundleError

Model = TypeVar("Model", bound=nn.Module)


def merge(model: Model) -> Model:
    """Merge every adapter of `model`, in place, and return it; merging again changes nothing.

    Each split projection becomes the expectation over the expert that training draws (arXiv 2312.02923, section 3.3):

        W = W0 + Delta / E      b = mean of the experts' biases

    where W0 is zero for `up`. If the adapter's settings give a `merge_scale`, it takes the place of 1 / E.

    Raises:
        BundleError: an adapter holds a value that is not finite; nothing is merged.
    """
    adapters = {name: part for name, part in model.named_modules() if isinstance(part, Adapter)}
    for name, adapter in adapters.items():
        for parameter, value in adapter.named_parameters():
            if not torch.isfinite(value).all():
                raise BundleError(f"{name}.{parameter} holds NaN or infinity: tune again with a lower --lr")
    for adapter in adapters.values():
        adapter.merge_()
    return model
