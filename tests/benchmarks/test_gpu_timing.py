"""How the GPU's benchmark times: rounds, deadlines, and what is not timed."""

import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import gpu_timing
from mosa_deploy.errors import ConfigError


def test_every_round_calls_each_variant_as_often_in_a_changing_order() -> None:
    order: list[str] = []

    def note(name: str, seconds: float) -> Tensor:
        order.append(name)
        time.sleep(seconds)
        return torch.zeros(())

    calls = {name: partial(note, name, seconds) for name, seconds in (("a", 0.001), ("b", 0.002), ("c", 0.0))}
    waits: list[int] = []
    start = time.perf_counter()
    times = gpu_timing.interleave(calls, start + 1, np.inf, lambda: waits.append(len(order)))
    assert len({len(values) for values in times.values()}) == 1
    assert len(times["a"]) >= 10
    assert np.median(times["a"]) >= 0.001
    assert np.median(times["b"] / times["a"]) > 1
    bursts = ["".join(order[a:b]) for a, b in zip(waits[8::2], waits[9::2], strict=True)]
    (count,) = {len(burst) for burst in bursts}
    assert 1 < count <= 20
    assert all(len(set(burst)) == 1 for burst in bursts)
    rounds = ["".join(burst[0] for burst in bursts[i : i + 3]) for i in range(0, len(bursts), 3)]
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert len(set(rounds)) > 2


def test_rounds_end_at_the_deadline() -> None:
    def slow() -> Tensor:
        time.sleep(0.02)
        return torch.zeros(())

    start = time.perf_counter()
    with pytest.raises(gpu_timing.DeadlineError):
        gpu_timing.interleave({"a": slow}, start + 100, start + 0.3, lambda: None)
    assert time.perf_counter() - start < 5


def test_a_model_that_is_not_one_graph_is_compiled_with_breaks_and_says_so() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            doubled = 2 * x
            torch._dynamo.graph_break()
            return doubled + 1

    call, remark = gpu_timing.compiled(partial(Broken(), torch.ones(3)), "eager")
    assert remark == "with graph breaks"
    assert call().equal(torch.full((3,), 3.0))
    assert gpu_timing.compiled(partial(nn.Identity(), torch.ones(3)), "eager")[1] == ""


def test_an_answer_that_is_not_the_eager_one_is_not_timed() -> None:
    expected = torch.tensor([1.0, -2.0])
    gpu_timing.check(expected * 1.04, expected)
    for wrong in (expected * 1.06, expected * torch.nan):
        with pytest.raises(ConfigError, match=r"^answers differ from the eager model's by"):
            gpu_timing.check(wrong, expected)
