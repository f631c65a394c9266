"""How training computes the blocks of a model: as they are, compiled, or a second time in the backward pass."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mosa_deploy.adapters.attach import split_layers
from mosa_deploy.adapters.split_linear import SplitLinear
from mosa_deploy.backbones.foldable import Transformer, blocks_of
from mosa_deploy.errors import TrainingError
from training.tune_options import ExecutionOptions


class BlockForward:
    """What a block does in training instead of its own `forward`, which stays what it does in evaluation.

    Checkpointing keeps the block's input alone, and computes the rest again when the gradient needs it: with the random
    numbers of the first time, and with the step's experts, which are held.
    """

    def __init__(self, block: nn.Module, execution: ExecutionOptions) -> None:
        self.block, self.own = block, block.forward
        # Else compiled dropout would draw other masks.
        trained = torch.compile(self.own, options={"fallback_random": True}) if execution.compile else self.own
        self.trained = partial(checkpoint, trained, use_reentrant=False) if execution.checkpointing else trained

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        """The block's output."""
        output: Tensor = (self.trained if self.block.training else self.own)(*inputs, **options)
        return output


def set_execution(model: Transformer, execution: ExecutionOptions) -> None:
    """Let training compute the model's blocks as these options say, in place."""
    if not execution.checkpointing and not execution.compile:
        return
    if execution.compile:
        print("the blocks are compiled: the first steps of the first epoch take a minute or more", flush=True)
        for layer in split_layers(model):
            vars(layer)["forward"] = MethodType(uncompiled_experts(), layer)
    for block in blocks_of(model).values():
        vars(block)["forward"] = BlockForward(block, execution)


@cache
def uncompiled_experts() -> Any:
    """The forward pass of a split layer, which is not compiled: the code would change with the experts of each step."""
    return torch.compiler.disable(SplitLinear.forward)


@contextmanager
def compiling(execution: ExecutionOptions) -> Iterator[None]:
    """Make an error of the compiler one line, where steps are compiled.

    Raises:
        TrainingError: the compiler failed.
    """
    if not execution.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    with warnings.catch_warnings():
        # The compiler and what it loads warn of what nobody here can change, such as distutils.
        warnings.simplefilter("ignore")
        try:
            yield
        except TorchDynamoException as error:
            # "backend='inductor' raised:" and in the next line what.
            reason = str(error).replace("raised:\n", "raised: ").splitlines()[0]
            raise TrainingError(
                f"--compile: torch cannot compile the model here ({reason}): leave it out, also with --resume"
            ) from None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device has too little memory: on a CPU only the text says so."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def less_memory(batch_size: int, execution: ExecutionOptions) -> str:
    """What makes a step fit that did not: first what leaves the result as it is."""
    parts = 2 * execution.accumulate
    ways = []
    if parts <= batch_size:
        ways.append(f"--resume --accumulate {parts} computes the same batch in {parts} parts")
    if not execution.checkpointing:
        ways.append("--resume --checkpointing keeps fewer activations, in more time")
    smaller = f"begin again with a --batch-size below {batch_size}"
    if batch_size == 1:
        smaller = "choose a smaller backbone, or a smaller --image-size"
    return ", and ".join(ways) or smaller
