"""Pre-train the embedded backbone on CIFAR-10, from scratch.

    python -m training.pretrain --data cifar10.tar.gz --out runs/pretrain

`--data` is an archive or a folder of `train/<class>/*.jpg` and `test/<class>/*.jpg`. The images are decoded once
into one uint8 tensor on the training device and augmented there, one epoch at a time, so that few CPU cores can keep
a GPU busy.

Running the same command again resumes after the last epoch that was saved, and the result has the same bytes as an
uninterrupted run. A few thousand training images are held out to monitor accuracy; the test set is read once, after the
last epoch. Only torch, torchvision and timm are imported, so this runs on any machine that has these three.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import PatchDropout
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mosa_deploy.errors import BackboneError, ConfigError, DataError, TrainingError, command
from mosa_deploy.utils.files import replacing, write_text
from mosa_deploy.utils.seeds import derive
from mosa_deploy.utils.versions import git_commit, library_versions
from training.pretrain_config import PretrainConfig, parse
from training.pretrain_data import Images, augment, mixing, normalise, read_images, split_held_out

CHECKPOINT, WEIGHTS, HISTORY = "checkpoint.pt", "weights.safetensors", "history.csv"
METRICS, CURVES = "metrics.json", "curves.png"

SAVE_SECONDS = 30.0
"""Least time between checkpoints, which end an epoch: on a GPU, writing one takes longer than an epoch."""

REPORT_STEPS = 50
"""Steps between two reports of the loss. Reading the loss makes the host wait for the device."""

Row = dict[str, float]


@dataclass
class Run:
    """The state that a checkpoint holds, and the learning rate schedule, which only depends on the update's number."""

    model: VisionTransformer
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    schedule: CosineLRScheduler
    history: list[Row] = field(default_factory=list)
    """One row per finished epoch."""


def build(config: PretrainConfig, classes: int) -> VisionTransformer:
    """A freshly initialised timm model.

    Raises:
        BackboneError: the architecture is not a plain ViT, or timm cannot make it.
    """
    torch.manual_seed(derive(config.seed, "weights"))
    try:
        model = timm.create_model(
            config.architecture,
            num_classes=classes,
            depth=config.depth,
            drop_path_rate=config.drop_path_rate,
            patch_drop_rate=config.patch_drop_rate,
        )
    except (TypeError, RuntimeError) as error:
        raise BackboneError(f"timm cannot make {config.architecture}: {error}; choose a plain vit_*") from error
    if not isinstance(model, VisionTransformer):
        raise BackboneError(f"{config.architecture} is a {type(model).__name__}: choose a plain vit_*")
    return model.to(config.device)


def start(config: PretrainConfig, images: Images, classes: int) -> Run:
    """A run before its first step, on images (N, 3, H, W).

    Raises:
        BackboneError: the architecture cannot be used.
        DataError: the model reads images of another size.
    """
    model = build(config, classes)
    size, expected = tuple(images.pixels.shape[2:]), model.patch_embed.img_size
    if size != expected:
        raise DataError(f"the images are {size}, {config.architecture} reads {expected} (H, W): resize the images")
    optimizer = create_optimizer_v2(model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
    steps = math.ceil(len(images) / config.batch_size)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=config.epochs * steps,
        lr_min=config.lr * 1e-3,
        warmup_t=int(config.warmup_epochs * steps),
        warmup_lr_init=config.lr * 1e-3,
        t_in_epochs=False,
    )
    return Run(model, ModelEmaV3(model, decay=config.ema_decay, use_warmup=True), optimizer, schedule)


def train_epoch(run: Run, images: Images, config: PretrainConfig) -> float:
    """Train for one epoch and return the mean loss. Its randomness derives from (seed, epoch) alone.

    Raises:
        TrainingError: the loss is not finite.
    """
    epoch = len(run.history)
    torch.manual_seed(derive(config.seed, "epoch", epoch))
    set_patch_drop(run.model, 0.0 if epoch >= config.epochs - config.full_epochs else config.patch_drop_rate)
    pixels = augment(images.pixels, config.augment)
    mix = mixing(config.mixup, config.cutmix, run.model.num_classes)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    batches = torch.randperm(len(images)).to(pixels.device).split(config.batch_size)
    total, began = torch.zeros((), device=pixels.device), time.perf_counter()
    run.model.train()
    for step, index in enumerate(batches, start=1):
        update = epoch * len(batches) + step - 1
        run.schedule.step_update(update)
        inputs, targets = mix(normalise(pixels[index]), images.labels[index])
        with torch.autocast(config.device, torch.bfloat16):
            loss = criterion(run.model(inputs), targets)
        run.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.ema.update(run.model, step=update)
        total += loss.detach() * len(index)
        if step % REPORT_STEPS == 0:
            mean = mean_loss(total, step * config.batch_size, config)
            speed = step * config.batch_size / (time.perf_counter() - began)
            print(f"  epoch {epoch + 1}, step {step}/{len(batches)}: loss {mean:.4f}, {speed:.0f} images/s", flush=True)
    return mean_loss(total, len(images), config)


def mean_loss(total: Tensor, count: int, config: PretrainConfig) -> float:
    """`total` / `count`, read from the device.

    Raises:
        TrainingError: it is not finite.
    """
    mean = float(total) / count
    if not math.isfinite(mean):
        raise TrainingError(f"the loss is {mean}: lower --lr (now {config.lr:g}) and choose another --out")
    return mean


def set_patch_drop(model: VisionTransformer, rate: float) -> None:
    """Set the share of patches that timm's PatchDropout drops in training."""
    if isinstance(model.patch_drop, PatchDropout):
        model.patch_drop.prob = rate


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images, batch_size: int = 500) -> float:
    """Top-1 accuracy of a model on images, in fp32."""
    model.eval()
    correct = 0
    for pixels, labels in zip(images.pixels.split(batch_size), images.labels.split(batch_size), strict=True):
        correct += int((model(normalise(pixels)).argmax(1) == labels).sum())
    return correct / len(images)


def pretrain(config: PretrainConfig) -> float:
    """Train, write the averaged weights to `weights.safetensors` in fp16, and return their test accuracy.

    Raises:
        MosaError: a setting or the images cannot be used, or training cannot continue.
    """
    config.check()
    print(f"decoding {config.data}", flush=True)
    classes, splits = read_images(config.data)
    recipe = {**config.recipe(), "classes": list(classes), "images": len(splits["train"])}
    train, held_out = split_held_out(splits["train"], config.held_out, config.seed)
    run = start(config, train, len(classes))
    resume(config.out, run, recipe)
    try:
        train, held_out, test = (images.to(config.device) for images in (train, held_out, splits["test"]))
        fit(run, train, held_out, config, recipe)
        # The accuracy is that of the file that ships: the fp16 weights, read back.
        run.ema.module.load_state_dict(load_file(config.out / WEIGHTS))
        measured = accuracy(run.ema.module, test)
    except torch.OutOfMemoryError as error:
        again = " in another --out" if run.history else ""
        raise TrainingError(
            f"out of memory at epoch {len(run.history) + 1}: --batch-size {config.batch_size // 2} halves what a step"
            f" needs{again}"
        ) from error
    made = {"data": str(config.data), "versions": library_versions(), "git_commit": git_commit()}
    write_text(config.out / METRICS, json.dumps({"test_accuracy": measured, **recipe, **made}, indent=2) + "\n")
    draw_curves(config.out / CURVES, run.history, config.architecture)
    print(f"test accuracy {measured:.4f}")
    return measured


def fit(run: Run, train: Images, held_out: Images, config: PretrainConfig, recipe: dict[str, object]) -> None:
    """Run the remaining epochs."""
    saved = time.perf_counter()
    while (epoch := len(run.history) + 1) <= config.epochs:
        began = time.perf_counter()
        loss = train_epoch(run, train, config)
        held = accuracy(run.ema.module, held_out)
        seconds = time.perf_counter() - began
        lr = run.optimizer.param_groups[0]["lr"]
        run.history.append({"epoch": epoch, "loss": loss, "held_out": held, "lr": lr, "seconds": round(seconds, 2)})
        left = seconds * (config.epochs - epoch) / 60
        print(
            f"epoch {epoch}/{config.epochs}: loss {loss:.4f}, held-out accuracy {held:.4f}, {left:.1f} min to go",
            flush=True,
        )
        if epoch == config.epochs or time.perf_counter() - saved > SAVE_SECONDS:
            save(config.out, run, recipe)
            saved = time.perf_counter()


def save(out: Path, run: Run, recipe: dict[str, object]) -> None:
    """Write the checkpoint, its history as CSV, and the averaged weights in fp16."""
    average = run.ema.module.state_dict()
    state = {"model": run.model.state_dict(), "average": average, "optimizer": run.optimizer.state_dict()}
    with replacing(out / CHECKPOINT) as aside:
        torch.save({**state, "history": run.history, "recipe": recipe}, aside)
    with replacing(out / WEIGHTS) as aside:
        save_file({name: value.half().contiguous().cpu() for name, value in average.items()}, aside)
    with replacing(out / HISTORY) as aside, aside.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, run.history[0])
        writer.writeheader()
        writer.writerows(run.history)


def resume(out: Path, run: Run, recipe: dict[str, object]) -> None:
    """Restore the last checkpoint, if there is one.

    Raises:
        ConfigError: the checkpoint was made with another recipe.
        TrainingError: the checkpoint cannot be read.
    """
    checkpoint = out / CHECKPOINT
    if not checkpoint.exists():
        return
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        before = state["recipe"]
    except Exception as error:  # On damaged bytes torch's unpickler raises IndexError and others.
        raise TrainingError(f"{checkpoint} cannot be read: remove it to start again") from error
    changed = [
        f"{name} was {before.get(name)}, is {recipe.get(name)}"
        for name in sorted(before.keys() | recipe.keys())
        if before.get(name) != recipe.get(name)
    ]
    if changed:
        raise ConfigError(f"--out {out} holds another run ({'; '.join(changed)}): repeat its flags, or choose --out")
    run.model.load_state_dict(state["model"])
    run.ema.module.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.history = state["history"]


def draw_curves(path: Path, rows: list[Row], title: str) -> None:
    """Plot the loss and the held-out accuracy over the epochs, if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no {path.name}: matplotlib is not installed")
        return
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    panels = (("loss", "loss (nats)", 1), ("held_out", "held-out accuracy (%)", 100))
    for axes, (name, label, factor) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.plot(epochs, [factor * row[name] for row in rows])
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    with replacing(path) as aside:
        figure.savefig(aside, format="png", dpi=150)


@command
def main() -> None:
    """The command line."""
    pretrain(parse(sys.argv[1:], __doc__))


if __name__ == "__main__":
    main()
