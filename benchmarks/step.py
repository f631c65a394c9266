"""Compare a training step of MoSA with one of the dense adapter: `python -m benchmarks.step`.

Three trainers take the same batch in turn, in one process and in a new random order each round: the dense adapter with
two passes in one batch, MoSA with two passes in one batch, and MoSA with two forwards of half that batch. Times are
compared round by round: the table has the median ratio with a 95 % bootstrap interval. Memory is the peak within a
step, beyond what was allocated before it.
"""

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mosa_deploy.adapters.attach import attach, set_passes
from mosa_deploy.adapters.loss import pass_losses
from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.foldable import image_size
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.intervals import median_interval
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import machine, provenance
from training.config import Recipe, adapter_config
from training.data import Images, normalise
from training.loop import Trainer
from training.tune import choose_device, choose_precision

REFERENCE = "dense adapter, two passes in one batch"
MOSA = "MoSA, two passes in one batch"
TWO_FORWARDS = "MoSA, two forwards"


@dataclass(frozen=True)
class Config:
    """Measure time and memory of a training step."""

    backbone: str = embedded.NAME
    batch_size: int = 16
    bottleneck: int = 16
    rounds: int = 60
    device: str = "auto"
    precision: str = "auto"
    out: Path = Path("benchmarks/results/step.md")


class TwoForwards(Trainer):
    """The passes go through the backbone one after the other."""

    def step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """See `Trainer.step`."""
        inputs = normalise(pixels, self.preprocess)
        set_passes(self.model, 1)
        with self.autocast:
            logits = torch.cat([self.model(inputs) for _ in range(self.recipe.passes)])
        cross_entropy, consistency = pass_losses(logits, labels, self.recipe.passes)
        self.optimizer.zero_grad()
        (cross_entropy + self.recipe.consistency * consistency).backward()
        self.optimizer.step()
        return torch.stack([cross_entropy, consistency]).detach().cpu()


def trainers(config: Config, device: str, batch: Images) -> dict[str, Trainer]:
    """Name -> trainer, each on its own backbone."""
    weights = Weights() if config.backbone == embedded.NAME else Weights("random")
    backbone = load_backbone(config.backbone, weights, classes=10)
    preprocess = Preprocess(size=(batch.pixels.shape[1], batch.pixels.shape[2]))
    mosa = Recipe(backbone=config.backbone, bottleneck=config.bottleneck, batch_size=config.batch_size)
    dense = replace(mosa, experts=1)
    precision = choose_precision(config.precision, device)
    kinds = {REFERENCE: (Trainer, dense, False), MOSA: (Trainer, mosa, True), TWO_FORWARDS: (TwoForwards, mosa, True)}
    found = {}
    for name, (kind, recipe, split) in kinds.items():
        model = attach(copy.deepcopy(backbone), adapter_config(recipe), split=split).train()
        found[name] = kind(model, batch, batch, preprocess, recipe, 0, device, precision)
    return found


def seconds(trainer: Trainer, batch: Images, device: str) -> float:
    """Seconds of wall time for one step, including the work that CUDA still has to finish."""
    start = time.perf_counter()
    trainer.step(batch.pixels.to(device), batch.labels.to(device))
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(trainer: Trainer, batch: Images, device: str) -> int:
    """The peak memory of a step in bytes, beyond what was allocated before it."""
    pixels, labels = batch.pixels.to(device), batch.labels.to(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainer.step(pixels, labels)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.step(pixels, labels)
    assert profiler.profiler is not None
    changes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum(changes).max())


def steps_table(times: dict[str, list[float]], memory: dict[str, int], batch_size: int) -> str:
    """Markdown table of the medians and the ratios to the dense adapter."""
    rows = []
    for name, values in times.items():
        ratio, low, high = median_interval(np.array(values) / np.array(times[REFERENCE]))
        median, held = float(np.median(values)), memory[name]
        cells = (f"{1000 * median:.1f}", f"{batch_size / median:.0f}", f"{ratio:.3f} ({low:.3f} - {high:.3f})")
        rows.append((name, *cells, f"{held / 2**20:.1f}", f"{held / memory[REFERENCE]:.3f}"))
    return table(("step", "ms", "images/s", "time ratio (95 %)", "MiB", "memory ratio"), rows)


def main() -> None:
    """Measure, print and write the table."""
    config = tyro.cli(Config, prog="python -m benchmarks.step")
    device = choose_device(config.device)
    size = image_size(load_backbone(config.backbone, Weights("random")))
    assert size is not None
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (config.batch_size, *size, 3), generator=generator, dtype=torch.uint8)
    batch = Images(pixels, torch.randint(0, 10, (config.batch_size,), generator=generator), [])
    found = trainers(config, device, batch)
    rng = np.random.default_rng(0)
    for trainer in found.values():
        for _ in range(3):
            seconds(trainer, batch, device)
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(config.rounds):
        for name in rng.permutation(list(found)):
            times[name].append(seconds(found[name], batch, device))
    memory = {name: peak_bytes(trainer, batch, device) for name, trainer in found.items()}
    name = torch.cuda.get_device_name() if device == "cuda" else machine()
    setting = f"{config.backbone}, batch {config.batch_size}, r = {config.bottleneck}, E = 4, {config.rounds} rounds"
    precision = choose_precision(config.precision, device)
    head = provenance("benchmarks.step", f"{name}, {precision}, {torch.get_num_threads()} threads")
    text = steps_table(times, memory, config.batch_size)
    write_text(config.out, f"# A training step\n\n{head}\n\n{setting}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
