import pytest
import torch
from scipy import stats

from mosa_deploy.adapters.split import split
from mosa_deploy.errors import ConfigError


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


def test_same_seed_gives_the_same_map_and_another_seed_another() -> None:
    first, again, other = (split((8, 8), 4, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_owners_are_scattered_not_contiguous() -> None:
    owner = split((64, 64), 4, generator())
    by_row = (owner[:, 1:] != owner[:, :-1]).float().mean().item()
    by_column = (owner[1:] != owner[:-1]).float().mean().item()
    assert by_row == pytest.approx(0.75, abs=0.03)
    assert by_column == pytest.approx(0.75, abs=0.03)


def test_every_entry_is_as_likely_to_go_to_any_expert() -> None:
    maps = torch.stack([split((2, 3), 3, generator(seed)) for seed in range(600)]).flatten(1)
    for entry in maps.T:
        assert stats.chisquare(torch.bincount(entry.int(), minlength=3).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("shape", "experts", "most"), [((2, 2), 5, 4), ((64, 64), 257, 256), ((2, 2), 0, 4)])
def test_experts_that_do_not_fit_are_refused_with_the_range(shape: tuple[int, int], experts: int, most: int) -> None:
    with pytest.raises(ConfigError, match=rf"--experts {experts} does not fit a .*choose 1 to {most}$"):
        split(shape, experts, generator())
