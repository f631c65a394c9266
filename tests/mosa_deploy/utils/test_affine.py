import numpy as np
import torch

from mosa_deploy.utils.affine import absorb_norm

RNG = np.random.default_rng(0)
WEIGHT, BIAS, GAIN, SHIFT = (RNG.standard_normal(shape) for shape in ((5, 4), (5,), (4,), (4,)))


def test_a_layer_that_absorbed_the_affine_answers_alike_on_the_normalised_input() -> None:
    weight, bias = absorb_norm(WEIGHT, BIAS, GAIN, SHIFT)
    normalised = RNG.standard_normal((7, 4))
    wanted = (normalised * GAIN + SHIFT) @ WEIGHT.T + BIAS
    np.testing.assert_allclose(normalised @ weight.T + bias, wanted, rtol=0, atol=1e-13)


def test_torch_and_numpy_absorb_alike_in_their_own_types() -> None:
    found = absorb_norm(*(torch.from_numpy(value) for value in (WEIGHT, BIAS, GAIN, SHIFT)))
    assert all(isinstance(value, torch.Tensor) for value in found)
    for value, wanted in zip(found, absorb_norm(WEIGHT, BIAS, GAIN, SHIFT), strict=True):
        np.testing.assert_allclose(value.numpy(), wanted, rtol=0, atol=1e-15)
