"""Fit the merge scale m of U_bar = m * U on validation, for `--merge-scale learned`.

The default is the expectation over the draw, m = 1 / E. But each expert learns to work alone in a forward pass, so a
larger m may suit the merged adapter better. m is a single number, fitted on validation like the temperature.
"""

import math

from scipy.optimize import minimize_scalar

from mosa_deploy.adapters.attach import set_merge_scale, split_layers
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.bundles.preprocess import Preprocess
from training.data import ImageSet
from training.loop import predict
from training.scores import validation_row

TOLERANCE = 0.02
"""Absolute tolerance of log m, at which the search stops."""


def fit_merge_scale(model: Transformer, validation: ImageSet, preprocess: Preprocess, device: str) -> float:
    """Find the m between 1 / (2 E) and 2 with the lowest cross entropy on validation, and set it in `model`."""
    experts = split_layers(model)[0].experts

    def loss(log_scale: float) -> float:
        set_merge_scale(model, math.exp(log_scale))
        return validation_row(predict(model, validation, preprocess, device), validation.labels)["validation_loss"]

    bounds = (-math.log(2 * experts), math.log(2))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": TOLERANCE})
    scale = math.exp(float(found.x))
    set_merge_scale(model, scale)
    return scale
