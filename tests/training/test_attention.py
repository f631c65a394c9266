import torch
from torch import Tensor, nn

from tests.support.models import Toy, perturb
from training.attention import set_fused, unfused


def fused(model: nn.Module) -> list[bool]:
    return [bool(module.fused_attn) for module in model.modules() if hasattr(module, "fused_attn")]


def gradient(model: nn.Module, enabled: bool) -> Tensor:
    """The gradient of the sum of squared logits with respect to two images."""
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    with unfused(model, enabled):
        model(images).square().sum().backward()
    assert images.grad is not None
    return images.grad


def test_gradients_are_those_of_the_fused_kernel(toy: Toy) -> None:
    model = toy(num_classes=3).double()
    perturb(model)
    torch.testing.assert_close(gradient(model, enabled=True), gradient(model, enabled=False), rtol=1e-10, atol=1e-10)


def test_only_steps_are_unfused_and_layers_that_were_not_fused_stay_so(toy: Toy) -> None:
    model = toy(num_classes=3)
    first = next(module for module in model.modules() if hasattr(module, "fused_attn"))
    set_fused([first], False)
    before = fused(model)
    with unfused(model, enabled=True):
        assert not any(fused(model))
    assert fused(model) == before == [False, *[True] * (len(before) - 1)]


def test_where_the_fused_kernel_is_fast_it_stays(toy: Toy) -> None:
    model = toy(num_classes=3)
    with unfused(model, enabled=False):
        assert all(fused(model))
