"""The models that `benchmarks.gpu` times: a plain ViT, variants with adapters, and three training steps.

All models have random weights, and those for inference have no head. The module needs only torch and timm.
`export.trace_shared` and `peft` are imported where they are used, so that a missing package affects only its own row.
"""

import copy
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from mosa_deploy.adapters.attach import adapters, attach, freeze, set_passes
from mosa_deploy.adapters.fold import fold
from mosa_deploy.adapters.loss import pass_losses
from mosa_deploy.adapters.parallel import ParallelAdapter
from mosa_deploy.backbones.foldable import Transformer, image_size, topology_of
from mosa_deploy.backbones.load import randomise
from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.graphs.adapter_weights import Layout
from mosa_deploy.utils.affine import absorb_norm

PLAIN, CONTROL, FOLDED, LOW_RANK = "plain", "control", "folded", "merged low-rank"
UNFOLDED, SHARED, MIXED, PEFT = "unfolded", "shared, one task", "shared, 8 tasks", "peft, 8 tasks"
DENSE, MOSA, TWO_FORWARDS = "dense adapter, one batch of 2B", "MoSA, one batch of 2B", "MoSA, two forwards"

INFERENCE = (PLAIN, CONTROL, FOLDED, LOW_RANK, UNFOLDED, SHARED, MIXED, PEFT)
STEPS = (DENSE, MOSA, TWO_FORWARDS)

TASKS = 8
RANK = 16
CLASSES = 100
"""Number of classes in training, as in VTAB's CIFAR-100."""


@dataclass(frozen=True)
class Variant:
    """A model, and a function from the batch size to its arguments besides the images."""

    model: nn.Module
    arguments: Callable[[int], dict[str, Any]] = lambda batch: {}


def inference_variants(backbone: Transformer, bottleneck: int) -> dict[str, Callable[[], Variant]]:
    """Name -> function that makes the variant, in fp32 on the CPU. Make all before moving one: they share modules."""
    plain = copy.deepcopy(backbone).requires_grad_(False)
    unfolded = adapted(plain, bottleneck, 0)
    shared = functools.cache(lambda: Shared(plain, stack([adapted(plain, bottleneck, i) for i in range(TASKS)])))
    return {
        PLAIN: lambda: Variant(plain),
        CONTROL: lambda: Variant(copy.deepcopy(plain)),
        FOLDED: lambda: Variant(fold(unfolded)),
        LOW_RANK: lambda: Variant(low_rank(plain)),
        UNFOLDED: lambda: Variant(unfolded),
        SHARED: lambda: Variant(shared(), lambda batch: {"slots": torch.zeros(batch, dtype=torch.int64)}),
        MIXED: lambda: Variant(shared(), lambda batch: {"slots": torch.arange(batch) % TASKS}),
        PEFT: lambda: Variant(peft_model(plain), lambda batch: {"adapter_names": peft_names(batch)}),
    }


def adapted(plain: Transformer, bottleneck: int, task: int) -> Transformer:
    """A copy of the backbone with merged random adapters; `task` is the seed."""
    model = attach(copy.deepcopy(plain), AdapterConfig(bottleneck), split=False).eval().requires_grad_(False)
    for i, adapter in enumerate(adapters(model)):
        randomise(adapter, seed=TASKS * i + task)
    return model


def stack(models: list[Transformer]) -> list[Tensor]:
    """The tasks' weights stacked as banks, in the order of `mosa_deploy.graphs.adapter_weights.Layout`."""
    tasks = [
        [value for part in model.modules() if isinstance(part, ParallelAdapter) for value in weights(part)]
        for model in models
    ]
    return [torch.stack(parts) for parts in zip(*tasks, strict=True)]


def weights(adapter: ParallelAdapter) -> list[Tensor]:
    """The four weights of a merged adapter, as `mosa_deploy.graphs.adapter_weights` defines them."""
    assert isinstance(adapter.down, nn.Linear)
    assert isinstance(adapter.up, nn.Linear)
    down, norm = adapter.down, adapter.norm
    weight, bias = absorb_norm(down.weight, down.bias, norm.weight, norm.bias)
    return [weight.T, bias, adapter.scale * adapter.up.weight.T, adapter.scale * adapter.up.bias]


class Shared(nn.Module):
    """The shared graph with its banks as buffers."""

    def __init__(self, plain: Transformer, banks: list[Tensor]) -> None:
        super().__init__()
        from export.trace_shared import SharedBackbone

        self.backbone = SharedBackbone(plain, Layout(topology_of(plain)))
        for i, bank in enumerate(banks):
            self.register_buffer(f"bank{i}", bank)

    def forward(self, images: Tensor, slots: Tensor) -> Tensor:
        """Images (B, 3, H, W) and slots (B,) -> features (B, C)."""
        out: Tensor = self.backbone(images, slots, list(self.buffers(recurse=False)))
        return out


@torch.no_grad()
def low_rank(plain: Transformer) -> Transformer:
    """The plain backbone with a merged LoRA of rank 16 on qkv: W + B A, with B (3C, 16) and A (16, C)."""
    model = copy.deepcopy(plain)
    generator = torch.Generator().manual_seed(0)
    for name, part in model.named_modules():
        if name.endswith("attn.qkv"):
            assert isinstance(part, nn.Linear)
            b = torch.randn(part.out_features, RANK, generator=generator)
            a = torch.randn(RANK, part.in_features, generator=generator)
            part.weight.add_(b @ a, alpha=0.01)
    return model


def peft_model(plain: Transformer) -> nn.Module:
    """PEFT's LoRA of rank 16 on qkv, one adapter per task; a forward pass may name one for each sample."""
    peft: Any = importlib.import_module("peft")
    config = peft.LoraConfig(r=RANK, target_modules=["qkv"], init_lora_weights=False)
    model: Any = peft.get_peft_model(copy.deepcopy(plain), config, adapter_name=peft_names(1)[0])
    for name in peft_names(TASKS)[1:]:
        model.add_adapter(name, config)
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def peft_names(batch: int) -> list[str]:
    """The name of each sample's adapter."""
    return [f"task{i % TASKS}" for i in range(batch)]


class TrainingStep:
    """`training.loop.Trainer.step` on one batch of normalised images, without the data set and its libraries."""

    def __init__(self, model: Transformer, images: Tensor, labels: Tensor, forwards: int, dtype: torch.dtype) -> None:
        """Take images (B, 3, H, W); each of `forwards` forwards gets 2 / `forwards` copies; fp32 needs no autocast."""
        self.model, self.images, self.labels, self.forwards = model, images, labels, forwards
        self.autocast = torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32)
        freeze(model)
        set_passes(model, 2 // forwards)
        self.optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.01, eps=1e-6)

    def __call__(self) -> Tensor:
        """One update; returns the loss."""
        with self.autocast:
            inputs = self.images.repeat(2 // self.forwards, 1, 1, 1)
            logits = torch.cat([self.model(inputs) for _ in range(self.forwards)])
        cross_entropy, consistency = pass_losses(logits, self.labels, passes=2)
        loss = cross_entropy + consistency
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def training_steps(plain: Transformer, bottleneck: int, batch: int, device: str) -> dict[str, TrainingStep]:
    """Name -> training step in bf16 under autocast, each on its own copy of the backbone."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *image_size(plain), generator=generator).to(device)
    labels = torch.randint(0, CLASSES, (batch,), generator=generator).to(device)
    config = AdapterConfig(bottleneck)
    found = {}
    for name, split, forwards in ((DENSE, False, 1), (MOSA, True, 1), (TWO_FORWARDS, True, 2)):
        model = copy.deepcopy(plain)
        model.reset_classifier(CLASSES)
        model = attach(model, config, split=split).train().to(device)
        found[name] = TrainingStep(model, images, labels, forwards, torch.bfloat16)
    return found
