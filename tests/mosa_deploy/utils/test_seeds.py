import hashlib

import torch

from mosa_deploy.utils.seeds import derive


def test_a_derived_seed_is_63_bits_of_the_uses_sha256() -> None:
    digest = hashlib.sha256(b"(7, 'expert', 3, 0)").hexdigest()
    assert derive(7, "expert", 3, 0) == int(digest[:16], 16) // 2
    torch.Generator().manual_seed(max(derive(seed) for seed in range(1000)))


def test_different_uses_have_different_seeds() -> None:
    uses: list[tuple[int, *tuple[str | int, ...]]] = [
        (0, "a", 1),
        (0, "a1"),
        (0, "a", "1"),
        (1, "a", 1),
        (0, "a", 1, 0),
    ]
    uses += [(0, "expert", epoch, layer) for epoch in range(30) for layer in range(24)]
    assert len({derive(*use) for use in uses}) == len(uses)
