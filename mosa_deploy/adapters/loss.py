"""The loss of MoSA: cross entropy, and the agreement of two stochastic passes."""

from collections.abc import Callable
from typing import Literal

import torch
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn
from torch.nn import functional as F

from mosa_deploy.adapters.attach import set_passes

LabelLoss = Literal["bce", "asymmetric"]
"""The losses of several labels per image: binary cross entropy, or the asymmetric loss of arXiv 2009.14119."""


def two_pass_loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    consistency: float = 1.0,
    multi_label: LabelLoss | None = None,
) -> Tensor:
    """The loss of one training step, images (B, 3, H, W) and labels (B,) -> a scalar.

        L = CE(f1, y) + consistency * 1/2 [ KL(sg p2 || p1) + KL(sg p1 || p2) ]        (arXiv 2312.02923, section 3.4)

    f1 and f2 are two passes of the same images, each with experts of its own; they go through the model as one batch
    of 2 B. `sg` stops the gradient. A dense adapter's passes differ by dropout alone.

    Where an image may have several labels, `multi_label` names the loss that takes the place of CE, labels are (B, K)
    of 0 and 1, and KL is that of K independent Bernoulli variables.
    """
    set_passes(model, 2)
    logits = model(images.repeat(2, 1, 1, 1))
    losses = label_losses(logits, labels, 2, multi_label) if multi_label else pass_losses(logits, labels, passes=2)
    cross_entropy, agreement = losses
    return cross_entropy + consistency * agreement


def pass_losses(logits: Tensor, labels: Tensor, passes: int, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross entropy and consistency of `passes` stochastic passes of one batch, logits (passes * B, K).

    The first pass alone meets the labels, (B,) or the probabilities of the classes (B, K). One pass has no consistency
    term. `weight` (K,) weighs the classes in the cross entropy: it is the mean over the images, each of which counts as
    much as its label weighs. That is what `torch.nn.functional.cross_entropy` makes of labels (B,).
    """
    parts = logits.float().chunk(passes)
    cross_entropy = F.cross_entropy(parts[0], labels, weight)
    if weight is not None and labels.is_floating_point():
        # Where labels are probabilities, torch divides the sum by the number of images.
        cross_entropy = cross_entropy * len(labels) / (labels @ weight).sum()
    if passes == 1:
        return cross_entropy, torch.zeros_like(cross_entropy)
    first, second = (part.log_softmax(dim=1) for part in parts)
    forth = F.kl_div(first, second.detach(), reduction="batchmean", log_target=True)
    back = F.kl_div(second, first.detach(), reduction="batchmean", log_target=True)
    return cross_entropy, (forth + back) / 2


def label_losses(logits: Tensor, labels: Tensor, passes: int, loss: LabelLoss) -> tuple[Tensor, Tensor]:
    """The same for several labels per image, labels (B, K) of 0 and 1; each label is a Bernoulli variable of its own.

    Both terms are summed over the labels, as the logarithm of a product is, and averaged over the images.
    """
    parts = logits.float().chunk(passes)
    missed = label_loss(parts[0], labels, loss)
    if passes == 1:
        return missed, torch.zeros_like(missed)
    first, second = parts
    return missed, (bernoulli_kl(second.detach(), first) + bernoulli_kl(first.detach(), second)) / 2


def label_loss(logits: Tensor, labels: Tensor, loss: LabelLoss) -> Tensor:
    """The binary cross entropies or the asymmetric loss of logits (B, K), summed over K and averaged over B."""
    if loss == "asymmetric":
        # As one row: by default some releases of timm add up the images, and others average them.
        criterion: Callable[[Tensor, Tensor], Tensor] = AsymmetricLossMultiLabel()
        return criterion(logits.reshape(1, -1), labels.reshape(1, -1)) / len(labels)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(labels)


def bernoulli_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of Bernoulli variables with these logits (B, K), summed over K and averaged over B."""
    p = first.sigmoid()
    of_one = F.logsigmoid(first) - F.logsigmoid(second)
    of_zero = F.logsigmoid(-first) - F.logsigmoid(-second)
    return (p * of_one + (1 - p) * of_zero).sum() / len(first)
