"""The loss of several labels per image: sums over labels, and the divergence of independent Bernoulli variables."""

from collections.abc import Callable

import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional as F

from mosa_deploy import two_pass_loss
from mosa_deploy.adapters.loss import LabelLoss, bernoulli_kl, label_loss, label_losses


def draw(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LABELS = (draw(4, 5) > 0).float()


def test_the_divergence_is_that_of_torch_s_distributions() -> None:
    first, second = draw(4, 5), draw(5, 4).T
    by_torch = kl_divergence(Bernoulli(logits=first), Bernoulli(logits=second)).sum(1).mean()
    assert bernoulli_kl(first, second) == pytest.approx(float(by_torch), rel=1e-5)


def test_of_one_label_it_is_that_of_two_classes() -> None:
    first, second = draw(6, 1), draw(7, 1)[:6]
    p, q = (torch.cat([z, torch.zeros_like(z)], 1).log_softmax(1) for z in (first, second))
    of_two = F.kl_div(q, p, reduction="batchmean", log_target=True)
    assert bernoulli_kl(first, second) == pytest.approx(float(of_two), rel=1e-5)


def test_the_cross_entropies_of_the_labels_add_up() -> None:
    logits = draw(4, 5)
    of_each = F.binary_cross_entropy_with_logits(logits, LABELS, reduction="none")
    assert label_loss(logits, LABELS, "bce") == pytest.approx(float(of_each.sum(1).mean()))


def test_the_asymmetric_loss_is_timm_s_by_image() -> None:
    logits, timms = draw(4, 5), AsymmetricLossMultiLabel()
    by_image = [float(timms(logits[i : i + 1], LABELS[i : i + 1])) for i in range(4)]
    assert label_loss(logits, LABELS, "asymmetric") == pytest.approx(sum(by_image) / 4, rel=1e-5)


def test_the_first_pass_alone_meets_the_labels() -> None:
    logits = draw(8, 5)
    missed, agreement = label_losses(logits, LABELS, 2, "bce")
    assert missed == label_loss(logits[:4], LABELS, "bce")
    assert agreement == pytest.approx(
        float(bernoulli_kl(logits[:4], logits[4:]) + bernoulli_kl(logits[4:], logits[:4])) / 2
    )


def test_each_divergence_moves_the_second_of_its_two() -> None:
    logits = draw(8, 5).requires_grad_()
    _, agreement = label_losses(logits, LABELS, 2, "bce")
    (gradient,) = torch.autograd.grad(agreement, logits)
    p = logits.detach().sigmoid()
    # d KL(p || q) / d z_q = q - p, and each term counts a half.
    torch.testing.assert_close(gradient, torch.cat([p[:4] - p[4:], p[4:] - p[:4]]) / 2 / 4)


@pytest.mark.parametrize("loss", ["bce", "asymmetric"])
def test_a_step_of_several_labels_has_gradients(toy: Callable[..., VisionTransformer], loss: LabelLoss) -> None:
    model = toy()
    count = model.num_classes
    labels = torch.eye(count)[:2]
    two_pass_loss(model, torch.zeros(2, 3, 16, 16), labels, multi_label=loss).backward()
    head = model.get_classifier()
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum() > 0
