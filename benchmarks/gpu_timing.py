"""Prepare, check and time the calls of `benchmarks.gpu`."""

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
FILES, SERVICE = "files", "service"

WARM_UP, MIN_ROUNDS = 3, 10

BURST = 0.02
"""Seconds of back-to-back calls between two readings of the clock, so that waiting for the device hardly counts."""

TOLERANCE = 0.05
"""The largest difference from the eager output, relative to the largest output; bf16 rounds by 0.004."""

Call = Callable[[], Tensor]


class DeadlineError(Exception):
    """The time ran out before the measurement was complete."""


def prepare(mode: str, eager: partial[Tensor], backend: str) -> tuple[Call, str]:
    """(the call to time in `mode`, a remark for its row)."""
    if mode == GRAPHS:
        return capture(eager), ""
    if mode == COMPILE:
        return compiled(eager, backend)
    return eager, ""


def capture(eager: partial[Tensor]) -> Call:
    """The call as a CUDA graph, whose replay launches the kernels without Python in between.

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
    # A stream of its own: when a graph goes, torch frees the cuBLAS workspaces of all that were captured on its stream
    # (pytorch/pytorch#193402).
    with torch.cuda.graph(graph, stream=side):
        out = eager()
    return partial(replay, graph, out, eager)


def replay(graph: torch.cuda.CUDAGraph, out: Tensor, captured: partial[Tensor]) -> Tensor:
    """Replay a graph into its output. `captured` is held, not called: the graph reads its images where they lie."""
    graph.replay()
    return out


def compiled(eager: partial[Tensor], backend: str) -> tuple[Call, str]:
    """(the call with its model compiled for these shapes, a remark if it could not be one graph)."""

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
    """Compare an output with that of the eager model.

    Raises:
        ConfigError: they differ by more than `TOLERANCE`.
    """
    difference = float((answer.float() - expected.float()).abs().max() / expected.float().abs().max())
    # Not `>`: that would accept NaN.
    if not difference <= TOLERANCE:
        raise ConfigError(f"answers differ from the eager model's by {difference:.2g} of the largest")


def interleave(
    calls: Mapping[str, Call], until: float, deadline: float, synchronise: Callable[[], None]
) -> dict[str, NDArray[np.float64]]:
    """Variant -> seconds per call in every round. The rounds end at `until`, but not before `MIN_ROUNDS`.

    Every time is the mean over a burst of calls; the speed of the first variant decides the length of the bursts.

    Raises:
        DeadlineError: the deadline comes before `MIN_ROUNDS`.
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
    """Peak memory of a call on the GPU in MiB, beyond what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def to_device(value: Any, device: str) -> Any:
    """Move a tensor to the device; return anything else as it is."""
    return value.to(device) if isinstance(value, Tensor) else value


def headline(error: Exception) -> str:
    """The first line of an error's message, or its type if there is no message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
