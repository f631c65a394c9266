"""Affine algebra that torch tensors and numpy arrays share."""

from typing import Any, Protocol, TypeVar


class Matrix(Protocol):
    """A torch tensor or a numpy array, as far as it is needed here."""

    def __mul__(self, other: Any, /) -> Any:
        """The product entry by entry, with broadcasting."""
        ...

    def __matmul__(self, other: Any, /) -> Any:
        """The matrix product."""
        ...

    def __add__(self, other: Any, /) -> Any:
        """The sum entry by entry."""
        ...


M = TypeVar("M", bound=Matrix)


def absorb_norm(weight: M, bias: M, gain: M, shift: M) -> tuple[M, M]:
    """The weight and bias of a linear layer that takes over the affine of the LayerNorm before it.

        W (g * n + be) + b  =  W' n + b'      with  W' = W diag(g),  b' = b + W be

    n is the normalised input, W (out, C) is `weight`, b (out,) is `bias`, g (C,) is the norm's `gain` and be (C,) its
    `shift`. Afterwards the norm is the plain one: g = 1, be = 0. The precision is that of the arguments.
    """
    absorbed: M = weight * gain
    moved: M = bias + weight @ shift
    return absorbed, moved
