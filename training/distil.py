"""A task that gets more classes holds on to what it knew: knowledge distillation from the task as it was.

The teacher is the task before its first step. Its logits t of the old classes are computed once for each training
image, old and new, as the image is before it is augmented. The model's own logits z of these classes stay near them:

    D = T^2 KL(softmax(t / T) || softmax(z / T))        T = 2

D is averaged over images and passes and joins the loss with a weight (Li and Hoiem, arXiv 1606.09282; Hinton et al.,
arXiv 1503.02531). What the new images look like to the old classes is a part of what the task knew, so they are taught
too.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 2.0


def distillation(logits: Tensor, taught: Tensor) -> Tensor:
    """D of logits (B, K) and those of the teacher (B, K'), K' <= K, averaged over B."""
    own = (logits.float()[:, : taught.shape[1]] / TEMPERATURE).log_softmax(1)
    target = (taught / TEMPERATURE).log_softmax(1)
    return TEMPERATURE**2 * F.kl_div(own, target, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Held:
    """What the logits of the old classes should stay."""

    taught: Tensor
    """The teacher's logits (N, K') of all training images, on the device of the model."""
    weight: float

    def loss(self, logits: Tensor, rows: Tensor, passes: int, samples: int) -> Tensor:
        """D of the images in these rows (B,) of the set, logits (passes * B * samples, K)."""
        taught = self.taught[rows.to(self.taught.device)].repeat_interleave(samples, 0)
        return distillation(logits, taught.repeat(passes, 1))
