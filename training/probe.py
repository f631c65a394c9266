"""The linear probe: scikit-learn's logistic regression on the frozen features, with C chosen on validation.

`mosa_deploy.bundles.probe_features` says what the features may be.
"""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm import tqdm

from mosa_deploy.adapters.probe import TunedModel
from mosa_deploy.bundles.preprocess import Preprocess
from training.data import ImageSet
from training.label_scores import label_row
from training.loop import Row, predict
from training.scores import balanced_accuracy, kept
from training.tune_options import Balance, Select

GRID = tuple(10.0**power for power in range(-3, 4))
NEVER = -100.0
"""The logit of a class without a training image."""

MAX_ITERATIONS, TOLERANCE = 20_000, 1e-6
"""Tight enough that weakly regularised fits of a separable task give the same probe on every machine, although
floating-point sums differ in their order."""


@torch.no_grad()
def fit_probe(
    model: TunedModel,
    train: ImageSet,
    validation: ImageSet,
    preprocess: Preprocess,
    device: str,
    balance: Balance = "none",
    select: Select = "accuracy",
) -> list[Row]:
    """Fit one probe per C, put the best one into the head of `model`, and return one row per C.

    The features are standardised for the fit. The head absorbs the scaling: W / sd and b - W mean / sd. Of several
    labels per image each has a regression of its own.
    """
    head = model.get_classifier()
    assert isinstance(head, nn.Linear)
    classes = head.out_features
    model.to(device).reset_classifier(0)
    features, held_out = (predict(model, images, preprocess, device).numpy() for images in (train, validation))
    rows: list[Row] = []
    heads: list[tuple[torch.Tensor, torch.Tensor]] = []
    several, targets = train.labels.ndim == 2, train.labels.numpy()
    if targets.shape[1:] == (1,):
        targets = targets[:, 0]
    weights = None if balance == "none" else "balanced"
    for c in tqdm(GRID, desc="fitting", unit=" fits", leave=False, disable=None):
        regression = LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=TOLERANCE, class_weight=weights)
        pipeline = make_pipeline(StandardScaler(), OneVsRestClassifier(regression) if several else regression)
        with warnings.catch_warnings():
            # A weakly regularised fit may not converge; validation decides whether it is good enough.
            warnings.simplefilter("ignore", ConvergenceWarning)
            pipeline.fit(features, targets)
        if several:
            heads.append(head_of_labels(*pipeline))
            rows.append({"c": c, **label_row(answers_of(heads[-1], held_out), validation.labels)})
        else:
            rows.append({"c": c, **measured(pipeline, held_out, validation.labels.numpy(), select)})
            heads.append(head_of(pipeline[0], regression))
    weight, bias = heads[kept(rows, select)] if several else of_all(heads[kept(rows, select)], targets, classes)
    model.reset_classifier(classes)
    model.get_classifier().load_state_dict({"weight": weight, "bias": bias})
    model.to(device)
    return rows


def measured(pipeline: Pipeline, features: NDArray[np.float32], labels: NDArray[np.int64], select: Select) -> Row:
    """The columns of the history that choose the best C."""
    row = {
        "validation_accuracy": float(pipeline.score(features, labels)),
        "validation_balanced_accuracy": balanced_accuracy(labels, pipeline.predict(features)),
    }
    if select == "loss":
        row["validation_loss"] = float(log_loss(labels, pipeline.predict_proba(features), labels=pipeline.classes_))
    return row


def of_all(
    head: tuple[torch.Tensor, torch.Tensor], labels: NDArray[np.int64], classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight (K, C) and bias (K,) of all classes, from those of the classes in `labels`.

    A class without a training image gets a bias below every logit that matters. Logits have a mean of 0 over the
    classes that were fitted, so the largest of them is above it.
    """
    present = np.unique(labels)
    if len(present) == classes:
        return head
    weight, bias = head[0].new_zeros(classes, head[0].shape[1]), head[1].new_full((classes,), NEVER)
    weight[present], bias[present] = head
    return weight, bias


def head_of_labels(scaler: StandardScaler, fitted: OneVsRestClassifier) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight (K, C) and bias (K,) for unscaled features, of one regression per label."""
    weight = np.concatenate([each.coef_ for each in fitted.estimators_]) / scaler.scale_
    bias = np.concatenate([each.intercept_ for each in fitted.estimators_]) - weight @ scaler.mean_
    return torch.tensor(weight), torch.tensor(bias)


def answers_of(head: tuple[torch.Tensor, torch.Tensor], features: NDArray[np.float32]) -> torch.Tensor:
    """Features (N, C) -> logits (N, K)."""
    weight, bias = head
    return (torch.from_numpy(features).double() @ weight.T + bias).float()


def head_of(scaler: StandardScaler, regression: LogisticRegression) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight (K, C) and bias (K,) for unscaled features; two classes get one row each."""
    weight, bias = regression.coef_ / scaler.scale_, regression.intercept_
    bias = bias - weight @ scaler.mean_
    if len(weight) == 1:
        # scikit-learn keeps one row for two classes: sigmoid(z) is the softmax of (-z/2, z/2).
        weight, bias = torch.tensor(weight), torch.tensor(bias)
        return torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    return torch.tensor(weight), torch.tensor(bias)
