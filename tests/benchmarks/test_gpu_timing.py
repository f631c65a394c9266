"""How the GPU's benchmark times: rounds, deadlines, and what is not timed."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import gpu_timing
from mosa_deploy.errors import ConfigError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only calls let pass."""
    clock = [0.0]
    monkeypatch.setattr("benchmarks.gpu_timing.time.perf_counter", lambda: clock[0])
    return clock


def test_every_round_calls_each_variant_as_often_in_a_changing_order(clock: list[float]) -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> Tensor:
        order.append(name)
        clock[0] += seconds
        return torch.zeros(())

    costs = {"a": 0.0015, "b": 0.003, "c": 0.0}
    waits: list[int] = []
    calls = {name: partial(call, name, seconds) for name, seconds in costs.items()}
    times = gpu_timing.interleave(calls, 1, np.inf, lambda: waits.append(len(order)))
    assert {len(found) for found in times.values()} == {16}
    assert {name: np.median(found) for name, found in times.items()} == pytest.approx(costs)
    bursts = ["".join(order[a:b]) for a, b in zip(waits[8::2], waits[9::2], strict=True)]
    assert {(len(burst), len(set(burst))) for burst in bursts} == {(14, 1)}
    rounds = ["".join(burst[0] for burst in bursts[i : i + 3]) for i in range(0, len(bursts), 3)]
    assert {"".join(sorted(names)) for names in rounds} == {"abc"}
    assert len(set(rounds)) > 2


def test_rounds_end_at_the_deadline(clock: list[float]) -> None:
    def slow() -> Tensor:
        clock[0] += 0.03
        return torch.zeros(())

    with pytest.raises(gpu_timing.DeadlineError):
        gpu_timing.interleave({"a": slow}, until=100, deadline=0.4, synchronise=lambda: None)
    assert clock[0] == pytest.approx(0.42)


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
