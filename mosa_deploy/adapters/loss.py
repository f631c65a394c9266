"""The loss of MoSA: cross entropy, and the agreement of two stochastic passes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mosa_deploy.adapters.attach import set_passes


def two_pass_loss(model: nn.Module, images: Tensor, labels: Tensor, consistency: float = 1.0) -> Tensor:
    """The loss of one training step, images (B, 3, H, W) and labels (B,) -> a scalar.

        L = CE(f1, y) + consistency * 1/2 [ KL(sg p2 || p1) + KL(sg p1 || p2) ]        (arXiv 2312.02923, section 3.4)

    f1 and f2 are two passes of the same images, each with experts of its own; they go through the model as one batch
    of 2 B. `sg` stops the gradient. A dense adapter's passes differ by dropout alone.
    """
    set_passes(model, 2)
    cross_entropy, agreement = pass_losses(model(images.repeat(2, 1, 1, 1)), labels, passes=2)
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
