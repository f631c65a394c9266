import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.topology import BlockTopology
from mosa_deploy.errors import ConfigError
from mosa_deploy.graphs.adapter_weights import PARTS, Layout
from mosa_deploy.graphs.bank import Bank

DEPTH, WIDTH = 2, 6
LAYOUT = Layout(BlockTopology(DEPTH, WIDTH))


def rows(bottleneck: int, seed: int = 0, depth: int = DEPTH, width: int = WIDTH) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = Layout(BlockTopology(depth, width)).shapes(bottleneck)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def content(bank: Bank, slot: int) -> dict[str, NDArray[np.float32]]:
    return {name: tensor[slot].copy() for name, tensor in bank.tensors.items()}


def test_a_written_slot_holds_the_rows_and_zeros_beyond_them() -> None:
    bank, given = Bank(LAYOUT, bottleneck=4, capacity=2), rows(3)
    slot = bank.write(given)
    down = bank.tensors["blocks.1.down"][slot]
    np.testing.assert_array_equal(down[:, :3], given["blocks.1.down"])
    assert not down[:, 3:].any()
    up = bank.tensors["blocks.1.up"][slot]
    np.testing.assert_array_equal(up[:3], given["blocks.1.up"])
    assert not up[3:].any()
    assert not any(tensor[1 - slot].any() for tensor in bank.tensors.values())


def test_a_task_with_adapters_in_some_blocks_alone_leaves_the_others_zero() -> None:
    bank = Bank(LAYOUT, bottleneck=4)
    slot = bank.write({name: value for name, value in rows(4).items() if name.startswith("blocks.1.")})
    assert not any(bank.tensors[f"blocks.0.{part}"][slot].any() for part in PARTS)
    np.testing.assert_array_equal(bank.tensors["blocks.1.up"][slot], rows(4)["blocks.1.up"])


def test_growing_doubles_and_keeps_every_slot_where_it_was() -> None:
    bank = Bank(LAYOUT, bottleneck=4, capacity=1)
    first = bank.write(rows(3))
    before = content(bank, first)
    second = bank.write(rows(9, seed=1))
    assert (bank.capacity, bank.bottleneck, bank.growths) == (2, 16, 1)
    third = bank.write(rows(2, seed=2))
    assert (bank.capacity, bank.growths) == (4, 2)
    assert len({first, second, third}) == 3
    for name, value in before.items():
        whole = bank.tensors[name][first]
        np.testing.assert_array_equal(whole[tuple(slice(size) for size in value.shape)], value)
        assert np.count_nonzero(whole) == np.count_nonzero(value)


def test_clearing_a_slot_touches_no_other_and_frees_it() -> None:
    bank = Bank(LAYOUT, bottleneck=4, capacity=2)
    first, second = bank.write(rows(4)), bank.write(rows(4, seed=1))
    kept = content(bank, second)
    bank.clear(first)
    assert not any(tensor[first].any() for tensor in bank.tensors.values())
    assert all(np.array_equal(value, bank.tensors[name][second]) for name, value in kept.items())
    assert bank.write(rows(1, seed=2)) == first
    assert bank.growths == 0
    # Nothing of the wider task that was there before.
    assert not bank.tensors["blocks.0.down"][first][:, 1:].any()


def test_every_write_and_clear_is_a_change() -> None:
    bank = Bank(LAYOUT)
    slot = bank.write(rows(4))
    bank.clear(slot)
    assert bank.changes == 2


def test_a_linear_task_takes_an_empty_slot() -> None:
    bank = Bank(LAYOUT, capacity=2)
    slot = bank.write({})
    assert not any(tensor[slot].any() for tensor in bank.tensors.values())
    assert bank.write({}) != slot


@pytest.mark.parametrize(("depth", "width"), [(DEPTH + 1, WIDTH), (DEPTH, WIDTH + 1)])
def test_rows_of_another_backbone_are_refused_and_take_no_slot(depth: int, width: int) -> None:
    bank = Bank(LAYOUT)
    with pytest.raises(ConfigError, match=r"are not of 2 blocks of width 6: give those of this backbone$"):
        bank.write(rows(4, depth=depth, width=width))
    assert bank.free == [0]


def test_a_bank_of_a_graph_built_for_a_bottleneck_grows_to_it_and_no_further() -> None:
    bank = Bank(LAYOUT, bottleneck=4, limits=(9, 10))
    slot = bank.write(rows(9))
    assert bank.bottleneck == 10
    with pytest.raises(ConfigError, match=r"^a bottleneck of 11 is above the 10 .* --bank-bottleneck 11, or serve"):
        bank.write(rows(11))
    assert slot not in bank.free
    assert bank.growths == 1


def test_a_bank_of_a_graph_built_for_so_many_slots_grows_to_them_and_no_further() -> None:
    bank = Bank(LAYOUT, bottleneck=4, capacity=2, limits=(3, 8))
    slots = [bank.write(rows(2, seed)) for seed in range(3)]
    assert (sorted(slots), bank.capacity) == ([0, 1, 2], 3)
    with pytest.raises(ConfigError, match=r"^all 3 slots .* are taken: build it with --bank-slots 6, or serve"):
        bank.write(rows(2))
    bank.clear(slots[1])
    assert bank.write(rows(3, seed=3)) == slots[1]


def test_a_bank_starts_within_the_limits_of_its_graph() -> None:
    bank = Bank(LAYOUT, bottleneck=16, capacity=200, limits=(64, 8))
    assert (bank.capacity, bank.bottleneck) == (64, 8)


def test_a_runner_with_a_copy_is_told_the_slots_that_changed_since() -> None:
    bank = Bank(LAYOUT, bottleneck=4, capacity=3)
    first, second = bank.write(rows(2)), bank.write(rows(3, seed=1))
    copied = bank.changes
    assert bank.changed_since(copied) == []
    bank.clear(first)
    assert bank.changed_since(copied) == [first]
    third = bank.write(rows(2, seed=2))
    assert set(bank.changed_since(copied)) == {first, third}
    assert second not in (first, third)
    assert bank.changed_since(bank.changes) == []


def test_a_low_rank_layout_has_the_rows_of_its_modules_and_a_graph_of_its_own() -> None:
    layout = Layout(BlockTopology(1, 6), (("attn.qkv", 6, 18), ("mlp.fc2", 24, 6)), "low-rank")
    assert layout.file == "shared-qkv-fc2.onnx"
    bank = Bank(layout, bottleneck=5)
    assert {name: tensor.shape for name, tensor in bank.tensors.items()} == {
        "blocks.0.attn.qkv.down": (1, 6, 5),
        "blocks.0.attn.qkv.up": (1, 5, 18),
        "blocks.0.mlp.fc2.down": (1, 24, 5),
        "blocks.0.mlp.fc2.up": (1, 5, 6),
    }
    with pytest.raises(ConfigError, match=r"^the adapter weights are not of 1 blocks of width 6 with updates of attn"):
        bank.write(rows(4, depth=1))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give memory in their own way")
def resident_bytes(tensor: Array) -> int:
    """How much of a tensor's memory the kernel has given out: bit 63 of a page's entry says that it is there."""
    first, last = tensor.ctypes.data // mmap.PAGESIZE, (tensor.ctypes.data + tensor.nbytes - 1) // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as handle:
        handle.seek(8 * first)
        entries = np.frombuffer(handle.read(8 * (last - first + 1)), dtype=np.uint64)
    return int((entries >> np.uint64(63)).sum()) * mmap.PAGESIZE


def test_a_large_bank_takes_memory_only_for_the_slots_that_are_written() -> None:
    bank, given = Bank(Layout(BlockTopology(6, 64)), bottleneck=16, capacity=5000), rows(16, depth=6, width=64)
    for _ in range(10):
        bank.write(given)
    resident = sum(map(resident_bytes, bank.tensors.values()))
    needed = 10 * sum(value.nbytes for value in given.values())
    assert needed <= resident <= needed + 2 * mmap.PAGESIZE * len(bank.tensors)
    assert sum(tensor.nbytes for tensor in bank.tensors.values()) > 200_000_000


def test_rows_are_multiplied_by_the_scales_of_the_file_that_reads_them() -> None:
    given, scales = rows(3), {"blocks.1.down": np.array([1, 2, 4, 0.5, 1, 1], dtype=np.float32)}
    bank = Bank(LAYOUT, bottleneck=4, scales=scales)
    found = content(bank, bank.write(given))
    np.testing.assert_array_equal(found["blocks.1.down"][2, :3], 4 * given["blocks.1.down"][2])
    np.testing.assert_array_equal(found["blocks.1.down"][3, :3], given["blocks.1.down"][3] / 2)
    np.testing.assert_array_equal(found["blocks.0.down"][:, :3], given["blocks.0.down"])
