import pytest
import torch

from mosa_deploy.split import split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_owner_map_is_uint8_of_the_projection_shape() -> None:
    owner = split((6, 5), 4, generator())
    assert owner.dtype == torch.uint8
    assert owner.shape == (6, 5)


@pytest.mark.parametrize(("shape", "experts"), [((3, 4), 4), ((7, 3), 4), ((1, 5), 5), ((16, 192), 7), ((2, 200), 256)])
def test_parts_cover_all_entries_and_differ_by_at_most_one(shape: tuple[int, int], experts: int) -> None:
    counts = torch.bincount(split(shape, experts, generator()).flatten().int(), minlength=experts)
    assert len(counts) == experts
    assert counts.sum() == shape[0] * shape[1]
    assert counts.max() - counts.min() <= 1
