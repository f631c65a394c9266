"""How `benchmarks.gpu` calls a model, proves the answer, and times calls in turn."""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._dynamo.exc import Unsupported

from mosa_deploy.errors import ConfigError

EAGER, GRAPHS, TRAINING, COMPILE = "eager", "CUDA graphs", "training", "compile"

WARM_UP, MIN_ROUNDS = 3, 10

BURST = 0.02
"""Seconds at most that the reference is called for before the clock is read: waiting for the device shall not count."""

TOLERANCE = 0.05
"""How far a mode's answer may be from the eager one, in parts of the largest output: one bf16 rounding is 0.004."""

Call = Callable[[], Tensor]


class DeadlineError(Exception):
    """The time does not suffice for what comes next."""


def prepare(mode: str, eager: partial[Tensor], backend: str) -> tuple[Call, str]:
    """What is timed in `mode`, and a remark for its row."""
    if mode == GRAPHS:
        return capture(eager), ""
    if mode == COMPILE:
        return compiled(eager, backend)
    return eager, ""


def capture(eager: partial[Tensor]) -> Call:
    """A replay of the call's kernels, without Python between them.

    Raises:
        ConfigError: the images are not on an NVIDIA GPU.
    """
    if not eager.args[0].is_cuda:
        raise ConfigError("needs an NVIDIA GPU")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            eager()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = eager()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def compiled(eager: partial[Tensor], backend: str) -> tuple[Call, str]:
    """The call with its model compiled for these shapes, as one graph if it can be one."""

    def attempt(fullgraph: bool) -> Call:
        model = torch.compile(eager.func, backend=backend, fullgraph=fullgraph, dynamic=False)
        call = partial(model, *eager.args, **eager.keywords)
        call()
        return call

    try:
        return attempt(fullgraph=True), ""
    except Unsupported:
        return attempt(fullgraph=False), "with graph breaks"


def check(answer: Tensor, expected: Tensor) -> None:
    """Raises ConfigError if an answer is not the eager one, up to rounding."""
    difference = float((answer.float() - expected.float()).abs().max() / expected.float().abs().max())
    # Not `>`: NaN too is refused.
    if not difference <= TOLERANCE:
        raise ConfigError(f"answers differ from the eager model's by {difference:.2g} of the largest")


def interleave(
    calls: Mapping[str, Call], until: float, deadline: float, synchronise: Callable[[], None]
) -> dict[str, NDArray[np.float64]]:
    """Seconds a call of each in every round, as many rounds as fit and at least `MIN_ROUNDS`; the first sets the burst.

    Raises:
        DeadlineError: the deadline comes before.
    """

    def burst(call: Call, count: int) -> float:
        if time.perf_counter() > deadline:
            raise DeadlineError
        synchronise()
        start = time.perf_counter()
        for _ in range(count):
            call()
        synchronise()
        return (time.perf_counter() - start) / count

    for call in calls.values():
        burst(call, WARM_UP)
    length = min(BURST, (until - time.perf_counter()) / (MIN_ROUNDS * len(calls)))
    count = max(1, math.ceil(length / burst(next(iter(calls.values())), WARM_UP)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, rng = list(calls), np.random.default_rng(0)
    while time.perf_counter() < until or len(times[names[-1]]) < MIN_ROUNDS:
        for i in rng.permutation(len(names)):
            times[names[i]].append(burst(calls[names[i]], count))
    return {name: np.array(values) for name, values in times.items()}


def peak_mib(call: Call) -> float:
    """The most that a call allocates on the GPU at once, beyond what was held before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def to_device(value: Any, device: str) -> Any:
    """Tensors are moved, the rest stays."""
    return value.to(device) if isinstance(value, Tensor) else value


def headline(error: Exception) -> str:
    """The first line of what an error says, or its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
