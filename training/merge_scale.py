"""The merge scale m of U_bar = m * U, fitted where the expectation, m = 1 / E, is left.

A single expert learns to carry a forward pass alone, while the expectation gives every entry a share of 1 / E.
Which m fits the merged adapter best is one number, found on validation as the temperature is.
"""

import math

from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from mosa_deploy.adapters.attach import set_merge_scale, split_layers
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.bundles.preprocess import Preprocess
from training.data import Images
from training.loop import predict

TOLERANCE = 0.02
"""Of log m."""


def fit_merge_scale(model: Transformer, validation: Images, preprocess: Preprocess, device: str) -> float:
    """The m in 1 / (2 E) .. 2 of the least cross entropy on validation, set in every split projection of `model`."""
    experts = split_layers(model)[0].experts

    def loss(log_scale: float) -> float:
        set_merge_scale(model, math.exp(log_scale))
        return float(F.cross_entropy(predict(model, validation, preprocess, device), validation.labels))

    bounds = (-math.log(2 * experts), math.log(2))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": TOLERANCE})
    scale = math.exp(float(found.x))
    set_merge_scale(model, scale)
    return scale
