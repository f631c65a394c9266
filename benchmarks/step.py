"""Compare a training step of MoSA with one of the dense adapter: `python -m benchmarks.step`.

Four trainers take the same batch in turn, in one process and in a new random order each round: the dense adapter with
two passes in one batch, MoSA with two passes in one batch, its experts drawn per pass or balanced, and MoSA with two
forwards of half that batch. Times are compared round by round: the table has the median ratio with a 95 % bootstrap
interval, and below it stands that of balanced and per-pass steps. Memory is the peak within a step, beyond what was
allocated before it.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mosa_deploy.adapters.attach import attach, set_passes, split_layers
from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.foldable import image_size as size_of
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.intervals import median_interval
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import machine, provenance
from training.data import Batch, Images, whole
from training.devices import Computing, choose_device
from training.loop import Trainer
from training.precision import choose_precision
from training.recipe import Recipe, adapter_config
from training.step import Step

REFERENCE = "dense adapter, two passes in one batch"
MOSA = "MoSA, two passes in one batch"
BALANCED = "MoSA, the same with balanced experts"
TWO_FORWARDS = "MoSA, two forwards"


@dataclass(frozen=True)
class Config:
    """Measure time and memory of a training step."""

    backbone: str = embedded.NAME
    image_size: int | None = None
    batch_size: int = 16
    experts: int = 4
    bottleneck: int = 16
    rounds: int = 60
    device: str = "auto"
    precision: str = "auto"
    out: Path = Path("benchmarks/results/step.md")


class StepOfTwoForwards(Step):
    """Two passes go through the backbone one after the other, and each draws its experts."""

    def __call__(self, batch: Batch) -> tuple[Tensor, int]:
        """See `Step`."""
        set_passes(self.model, 1)
        return super().__call__(batch)

    def logits(self, prepared: Tensor) -> Tensor:
        """See `Step.logits`."""
        first = self.entry.forward(prepared)
        for layer in split_layers(self.model):
            layer.drawn = layer.draw()
        return torch.cat([first, self.entry.forward(prepared)])


class TwoForwards(Trainer):
    """A trainer by such steps."""

    step_kind = StepOfTwoForwards


def trainers(config: Config, device: str) -> dict[str, Trainer]:
    """Name -> trainer, each on its own backbone."""
    mosa = Recipe(
        config.backbone, bottleneck=config.bottleneck, experts=config.experts, batch_size=config.batch_size, scale=1.0
    )
    dense, balanced = replace(mosa, experts=1), replace(mosa, activate="balanced")
    kinds = {REFERENCE: (Trainer, dense), MOSA: (Trainer, mosa), BALANCED: (Trainer, balanced)}
    kinds |= {TWO_FORWARDS: (TwoForwards, mosa)}
    return make_trainers(kinds, config.image_size, device, config.precision)


def make_trainers(
    kinds: Mapping[str, tuple[type[Trainer], Recipe]], image_size: int | None, device: str, precision: str
) -> dict[str, Trainer]:
    """Trainers of the given classes and recipes, each on its own copy of the same backbone, and all on the same images.

    The images are noise. With one expert the adapter is dense.
    """
    first = next(recipe for _, recipe in kinds.values())
    weights = Weights() if first.backbone == embedded.NAME else Weights("random")
    backbone = load_backbone(first.backbone, weights, classes=10, img_size=image_size)
    batch = noise(size_of(backbone), first.batch_size)
    preprocess = Preprocess(size=size_of(backbone))
    computing = Computing(device, choose_precision(precision, device))
    found = {}
    for name, (kind, recipe) in kinds.items():
        model = attach(copy.deepcopy(backbone), adapter_config(recipe), split=recipe.experts > 1)
        found[name] = kind(model, batch, batch, preprocess, recipe, 0, computing)
        model.train()
    return found


def noise(size: tuple[int, int], count: int) -> Images:
    """Images (H, W) of noise in 10 classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 10, (count,), generator=generator), [])


def seconds(trainer: Trainer, device: str) -> float:
    """Seconds of wall time for one step, including the work that CUDA still has to finish."""
    start = time.perf_counter()
    take_step(trainer)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def take_step(trainer: Trainer) -> None:
    """Make a step on all images of a trainer."""
    trainer.step(whole(trainer.train))


def measure(found: Mapping[str, Trainer], rounds: int, device: str) -> dict[str, NDArray[np.float64]]:
    """Name -> seconds of each round; in every round each trainer makes a step, in a new random order."""
    rng, times = np.random.default_rng(0), dict[str, list[float]]()
    for trainer in found.values():
        for _ in range(3):
            seconds(trainer, device)
    for _ in range(rounds):
        for name in rng.permutation(list(found)):
            times.setdefault(name, []).append(seconds(found[name], device))
    return {name: np.array(times[name]) for name in found}


def peak_bytes(trainer: Trainer, device: str) -> int:
    """The peak memory of a step in bytes, beyond what was allocated before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        take_step(trainer)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        take_step(trainer)
    assert profiler.profiler is not None
    changes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum(changes).max())


def ratio_text(ratios: NDArray[np.float64]) -> str:
    """The median of ratios with its 95 % interval."""
    ratio, low, high = median_interval(ratios)
    return f"{ratio:.3f} ({low:.3f} - {high:.3f})"


def steps_table(times: Mapping[str, NDArray[np.float64]], memory: Mapping[str, int], batch_size: int) -> str:
    """Markdown table of the medians and the ratios to the dense adapter."""
    rows = []
    for name, values in times.items():
        median, held = float(np.median(values)), memory[name]
        cells = (f"{1000 * median:.1f}", f"{batch_size / median:.0f}", ratio_text(values / times[REFERENCE]))
        rows.append((name, *cells, f"{held / 2**20:.1f}", f"{held / memory[REFERENCE]:.3f}"))
    return table(("step", "ms", "images/s", "time ratio (95 %)", "MiB", "memory ratio"), rows)


def where(device: str, precision: str) -> str:
    """The machine and how it computes."""
    name = torch.cuda.get_device_name() if device == "cuda" else machine()
    return f"{name}, {choose_precision(precision, device)}, {torch.get_num_threads()} threads"


def main() -> None:
    """Measure, print and write the table."""
    config = tyro.cli(Config, prog="python -m benchmarks.step")
    device = choose_device(config.device)
    found = trainers(config, device)
    times = measure(found, config.rounds, device)
    memory = {name: peak_bytes(trainer, device) for name, trainer in found.items()}
    pixels, _ = found[MOSA].preprocess.size
    setting = (
        f"{config.backbone} at {pixels} px, batch {config.batch_size}, r = {config.bottleneck}, E = {config.experts},"
        f" {config.rounds} rounds"
    )
    head = provenance("benchmarks.step", where(device, config.precision))
    text = steps_table(times, memory, config.batch_size)
    text += f"\n\nBalanced / per-pass, time of a step: {ratio_text(times[BALANCED] / times[MOSA])}."
    write_text(config.out, f"# A training step\n\n{head}\n\n{setting}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
