"""Pre-train the embedded backbone on CIFAR-10, from scratch.

    python -m training.pretrain --data cifar10.tar.gz --out runs/pretrain

`--data` is an archive or a folder of `train/<class>/*.jpg` and `test/<class>/*.jpg`. The images are decoded once
into one uint8 tensor and augmented in batches on the training device, so that few CPU cores starve no GPU.

The same command run again resumes at the last finished epoch. A few thousand training images are held out to watch;
the test set is read once, after the last epoch. Only torch and timm are imported, so that this file runs on any
machine that has the two.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import PatchDropout
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchvision.transforms import v2

from mosa_deploy import embedded
from mosa_deploy.files import replacing

CHECKPOINT, WEIGHTS, HISTORY = "checkpoint.pt", "weights.safetensors", "history.csv"

Row = dict[str, float]

CHUNK = 16
"""Images that share one draw of the augmentation: torchvision's transforms draw once a call, not once an image."""


@dataclass(frozen=True)
class PretrainConfig:
    """The recipe. Every field is a flag of the same name."""

    data: Path
    out: Path = Path("runs/pretrain")
    architecture: str = embedded.ARCHITECTURE
    epochs: int = 30
    full_epochs: int = 3
    """The last epochs see every patch; the ones before drop `patch_drop_rate` of them, for speed."""
    patch_drop_rate: float = 0.5
    batch_size: int = 256
    opt: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 2.0
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.0
    trivial_augment: bool = False
    ema_decay: float = 0.998
    held_out: int = 2000
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Images:
    """Decoded images (N, 3, H, W) uint8 with their labels (N,)."""

    pixels: Tensor
    labels: Tensor

    def subset(self, index: Tensor) -> Images:
        """The images of the given indices."""
        return Images(self.pixels[index], self.labels[index])

    def to(self, device: str) -> Images:
        """The same on another device."""
        return Images(self.pixels.to(device), self.labels.to(device))


def read_images(source: Path) -> dict[str, Images]:
    """Decode `.../<split>/<class>/<name>.jpg` of an archive or a folder: split name -> images in sorted order."""
    encoded = sorted(_encoded_files(source))
    if not encoded:
        raise SystemExit(f"error: no <split>/<class>/*.jpg in {source}")
    classes = sorted({path.split("/")[-2] for path, _ in encoded})
    pixels: dict[str, list[Tensor]] = {}
    labels: dict[str, list[int]] = {}
    for path, content in encoded:
        split, name = path.split("/")[-3:-1]
        image = Image.open(io.BytesIO(content)).convert("RGB")
        array = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels.setdefault(split, []).append(array.view(image.height, image.width, 3).permute(2, 0, 1))
        labels.setdefault(split, []).append(classes.index(name))
    return {split: Images(torch.stack(pixels[split]), torch.tensor(labels[split])) for split in pixels}


def _encoded_files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in source.rglob("*.jpg"):
            yield path.as_posix(), path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if content is not None:
                yield member.name, content.read()


def split_held_out(images: Images, count: int, seed: int) -> tuple[Images, Images]:
    """A seeded random cut into (the rest, `count` held-out images)."""
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))
    return images.subset(order[count:]), images.subset(order[:count])


class Augment:
    """Crop, flip and, if asked for, TrivialAugment, drawn once for each `CHUNK` of a uint8 batch (B, 3, H, W)."""

    def __init__(self, size: int, trivial: bool) -> None:
        steps: list[nn.Module] = [v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip()]
        if trivial:
            steps.append(v2.TrivialAugmentWide())
        self.transform = v2.Compose(steps)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Augment a batch."""
        return torch.cat([self.transform(chunk) for chunk in pixels.split(CHUNK)])


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float in [-1, 1], the mean and deviation of 0.5 that the backbone's data config names."""
    return pixels.float().div_(127.5).sub_(1.0)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Seed every generator from (seed, epoch), so that a resumed run equals an unbroken one; then draw the order."""
    torch.manual_seed(seed * 100_003 + epoch)
    return torch.randperm(count)


def train_epoch(
    model: nn.Module,
    ema: ModelEmaV3,
    optimizer: torch.optim.Optimizer,
    schedule: CosineLRScheduler,
    images: Images,
    config: PretrainConfig,
    epoch: int,
) -> float:
    """One pass over `images`; returns the mean loss."""
    augment = Augment(images.pixels.shape[-1], config.trivial_augment)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    set_patch_drop(model, 0.0 if epoch >= config.epochs - config.full_epochs else config.patch_drop_rate)
    order = epoch_order(len(images.labels), config.seed, epoch).to(config.device)
    batches = order.split(config.batch_size)
    total, start = 0.0, time.perf_counter()
    model.train()
    for step, index in enumerate(batches):
        update = epoch * len(batches) + step
        schedule.step_update(update)
        with torch.autocast(config.device, torch.bfloat16):
            logits = model(normalise(augment(images.pixels[index])))
            loss = criterion(logits, images.labels[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model, step=update)
        total += loss.item() * len(index)
        if not math.isfinite(total):
            raise SystemExit(f"error: the loss is not finite at epoch {epoch}, step {step}: lower --lr")
        if step % 50 == 49:
            speed = (step + 1) * config.batch_size / (time.perf_counter() - start)
            print(f"  epoch {epoch} step {step + 1}/{len(batches)} {speed:.0f} images/s", flush=True)
    return total / len(images.labels)


def set_patch_drop(model: nn.Module, rate: float) -> None:
    """Set the share of patches that timm's PatchDropout leaves out in training."""
    drop = model.get_submodule("patch_drop")
    if isinstance(drop, PatchDropout):
        drop.prob = rate


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images, batch_size: int = 500) -> float:
    """Top-1 accuracy in fp32."""
    model.eval()
    correct = 0
    for pixels, labels in zip(images.pixels.split(batch_size), images.labels.split(batch_size), strict=True):
        correct += int((model(normalise(pixels)).argmax(1) == labels).sum())
    return correct / len(images.labels)


def build(config: PretrainConfig, classes: int) -> nn.Module:
    """A freshly initialised timm model of the embedded architecture."""
    return timm.create_model(
        config.architecture,
        num_classes=classes,
        drop_path_rate=config.drop_path_rate,
        patch_drop_rate=config.patch_drop_rate,
    ).to(config.device)


def write_history(path: Path, rows: list[Row]) -> None:
    """A CSV file, one row an epoch."""
    with replacing(path) as aside, aside.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def pretrain(config: PretrainConfig) -> float:
    """Train, write `weights.safetensors` (fp16, the averaged weights) and return their test accuracy."""
    torch.manual_seed(config.seed)
    config.out.mkdir(parents=True, exist_ok=True)
    print(f"decoding {config.data}", flush=True)
    splits = read_images(config.data)
    train, held_out = split_held_out(splits["train"], config.held_out, config.seed)
    train, held_out = train.to(config.device), held_out.to(config.device)
    model = build(config, int(train.labels.max()) + 1)
    ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True)
    optimizer = create_optimizer_v2(model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
    steps = math.ceil(len(train.labels) / config.batch_size)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=config.epochs * steps,
        lr_min=config.lr * 1e-3,
        warmup_t=int(config.warmup_epochs * steps),
        warmup_lr_init=config.lr * 1e-3,
        t_in_epochs=False,
    )
    history = resume(config.out / CHECKPOINT, model, ema.module, optimizer)
    for epoch in range(len(history), config.epochs):
        start = time.perf_counter()
        loss = train_epoch(model, ema, optimizer, schedule, train, config, epoch)
        row = {"epoch": epoch, "loss": round(loss, 4), "held_out": accuracy(ema.module, held_out)}
        row["seconds"] = round(time.perf_counter() - start, 1)
        left = row["seconds"] * (config.epochs - epoch - 1) / 60
        print(f"epoch {epoch}: loss {loss:.4f} held-out {row['held_out']:.4f}, {left:.0f} min to go", flush=True)
        history.append(row)
        save(config.out, model, ema.module, optimizer, history)
        write_history(config.out / HISTORY, history)
    # The figure belongs to the file that ships: the fp16 weights, read back.
    ema.module.load_state_dict(load_file(config.out / WEIGHTS))
    test = accuracy(ema.module, splits["test"].to(config.device))
    record = {"test_accuracy": test, **{key: str(value) for key, value in asdict(config).items()}}
    (config.out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"test accuracy {test:.4f}")
    return test


def save(out: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, history: list[Row]) -> None:
    """Write the checkpoint, and the averaged weights in fp16 as they would ship."""
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    half = {name: value.half().contiguous().cpu() for name, value in average.state_dict().items()}
    with replacing(out / CHECKPOINT) as aside:
        torch.save({**state, "history": history}, aside)
    with replacing(out / WEIGHTS) as aside:
        save_file(half, aside)


def resume(checkpoint: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> list[Row]:
    """Restore the last finished epoch, if there is one; returns the rows of the epochs so far."""
    if not checkpoint.exists():
        return []
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    history: list[Row] = state["history"]
    return history


def parse(arguments: list[str]) -> PretrainConfig:
    """The command line: argparse, since only torch and timm are at hand."""
    parser = argparse.ArgumentParser(prog="python -m training.pretrain", description=__doc__)
    defaults = {field.name: field.default for field in fields(PretrainConfig)}
    for name, default in defaults.items():
        flag = "--" + name.replace("_", "-")
        if name == "data":
            parser.add_argument(flag, type=Path, required=True)
        elif isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)
    return PretrainConfig(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    pretrain(parse(sys.argv[1:]))
