import numpy as np

from benchmarks.undrawn import SkippingAdamW
from tests.support.adamw import DECAY, EXPERTS, adamw, gradients_of, split_layer, tuned


def test_skipping_leaves_undrawn_weights_moments_and_counts_alone() -> None:
    layer = split_layer()
    owner = layer.owner.long().numpy()
    start, base, gradients = layer.weight.detach().numpy().copy(), layer.base.numpy(), gradients_of(owner)
    expected = adamw(start, base, owner, gradients, DECAY, skip=True)
    given = tuned(layer.weight, layer, gradients, DECAY, SkippingAdamW)
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-12)
    assert not np.allclose(given, adamw(start, base, owner, gradients, DECAY), atol=1e-3)


def test_skipping_leaves_biases_of_undrawn_experts_alone() -> None:
    layer = split_layer()
    owner = np.arange(EXPERTS)[:, None].repeat(5, 1)
    start, gradients = layer.bias.detach().numpy().copy(), gradients_of(owner)
    expected = adamw(start, np.zeros_like(start), owner, gradients, 0.0, skip=True)
    np.testing.assert_allclose(tuned(layer.bias, layer, gradients, 0.0, SkippingAdamW), expected, rtol=0, atol=1e-12)
