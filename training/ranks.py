"""The processes of a run: one by itself, or several that share every batch (data parallel), as torchrun starts them.

Every process has the whole model and the same random numbers, computes its part of each batch, and adds its gradients
to those of the others. The first one alone writes and speaks.
"""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed

from mosa_deploy.errors import USAGE_EXIT, ConfigError, MosaError, TrainingError
from training.data import Cut, cuts

LOST = (
    "another process of this run has died, or the run was told to end: its message or the system's log says why;"
    " finished epochs are kept, go on with --resume"
)


class Ranks:
    """This process among all of a run. `rank` 0 is the first; with a `count` of 1 there are no others.

    `scratch` is where the others write what only the first keeps.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: str = "cpu", scratch: Path | None = None) -> None:
        self.rank, self.count, self.device, self.scratch = rank, count, device, scratch

    def __str__(self) -> str:
        return f", {self.count} processes" if self.count > 1 else ""

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def folder(self, out: Path) -> Path:
        """Where this process may write what it finds: the run's folder, or one that is thrown away."""
        return self.scratch or out

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, where it was.

        Raises:
            TrainingError: another process has ended.
        """
        if self.count == 1:
            return values
        total = values.to(self.device)
        try:
            distributed.all_reduce(total)
        except RuntimeError as error:
            raise LostRankError(LOST) from error
        return total.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in some process. All processes wait here for each other."""
        return bool(self.sum(torch.tensor([float(flag)])))

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give every parameter the sum of its gradients over all processes; one without any keeps none."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        known = torch.tensor([float(each.grad is not None) for each in parameters], device=self.device)
        summed, known = self.sum(torch.cat([each.reshape(-1) for each in gradients])), self.sum(known)
        parts = summed.split([each.numel() for each in parameters])
        for parameter, part, has in zip(parameters, parts, known.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) if has else None

    def cuts(self, order: Tensor, size: int) -> list[Cut]:
        """This process's part of every batch of `training.data.cuts`; it may be empty."""
        mine = []
        for rows, places, total in cuts(order, size):
            place = self.share(places)
            mine.append(Cut(rows[place], place, total))
        return mine

    def share(self, places: Tensor) -> Tensor:
        """This process's part of some places; the parts follow each other."""
        return places.tensor_split(self.count)[self.rank]


class LostRankError(TrainingError):
    """Another process of the run has ended. What it said is enough, if it said something."""


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process as torchrun started it, after all have met; `device` is where it trains, cpu or cuda.

    Inside, the output of all but the first goes nowhere. An error that several processes meet is told once.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(device=device)
        return
    with _told_once(), contextlib.ExitStack() as inside:
        rank, place = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
        if device == "cuda":
            if place >= torch.cuda.device_count():
                raise ConfigError(
                    f"{os.environ.get('LOCAL_WORLD_SIZE', count)} processes on {torch.cuda.device_count()} GPUs: start"
                    " at most one for each GPU"
                )
            torch.cuda.set_device(place)
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(hours=1))
        inside.callback(distributed.destroy_process_group)
        # torchrun ends all processes in this way when one has died.
        inside.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _end))
        scratch = None
        if rank:
            nowhere = inside.enter_context(Path(os.devnull).open("w"))
            inside.enter_context(contextlib.redirect_stdout(nowhere))
            inside.enter_context(contextlib.redirect_stderr(nowhere))
            scratch = Path(inside.enter_context(tempfile.TemporaryDirectory()))
        yield Ranks(rank, count, device, scratch)


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """Let the first process alone say what is wrong with arguments, which all of them have alike."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            yield
        except MosaError:
            raise SystemExit(USAGE_EXIT) from None


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """End this process without a word if another has told of an error, which explains this one or is the same."""
    try:
        yield
    except (MosaError, KeyboardInterrupt) as error:
        if _is_told(isinstance(error, LostRankError)):
            raise SystemExit(USAGE_EXIT) from None
        raise


def _is_told(lost: bool) -> bool:
    """Whether another process has told of an error; otherwise this one is going to. `lost` ones follow others."""
    with contextlib.suppress(RuntimeError):
        store = distributed.TCPStore(  # type: ignore[attr-defined] # documented, though torch does not list it
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )
        if not lost:
            return store.add("mosa/told", 1) > 1
        return store.add("mosa/told", 0) > 0 or store.add("mosa/lost", 1) > 1
    return False


def _end(*_: object) -> None:
    raise LostRankError(LOST)


def is_cpu_wanted() -> bool:
    """Whether accelerate's variable asks for the CPU."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y", "t")
