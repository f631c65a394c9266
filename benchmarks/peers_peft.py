"""A low-rank task as PEFT reads it: a folder of its LoRA adapter with the head, and the backbone that it is put on."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from torch import nn

from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import Target
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.record import Record

ADAPTER = "peft"
"""The folder beside a task's bundle."""

TARGET: Target = "qkv"
"""The layer of each block that the tasks update."""

PARTS = {"down": "lora_A", "up": "lora_B"}
"""Our names of A and B, and PEFT's."""


def write_adapter(bundle: Bundle, folder: Path) -> None:
    """Write a merged low-rank bundle as `PeftModel.save_pretrained` would."""
    adapter, head = bundle.record.adapter, bundle.record.backbone.topology.head
    assert adapter is not None
    config = {
        "peft_type": "LORA",
        "r": adapter.bottleneck,
        # PEFT multiplies by alpha / r.
        "lora_alpha": adapter.scale * adapter.bottleneck,
        "target_modules": [TARGET],
        "modules_to_save": [head],
        "inference_mode": True,
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(renamed(bundle)), folder / "adapter_model.safetensors")


def renamed(bundle: Bundle) -> Mapping[str, np.typing.NDArray[np.float32]]:
    """The bundle's tensors by PEFT's names."""
    found = {}
    for name, value in bundle.tensors.items():
        module, _, part = name.partition(f".adapter.{TARGET}.")
        own = f"{module}.{PARTS[part.removesuffix('.weight')]}.weight" if part else name
        found[f"base_model.model.{own}"] = np.ascontiguousarray(value, dtype=np.float32)
    return found


def load_base(record: Record, weights: Path | None) -> nn.Module:
    """The backbone with a head of as many classes as the task has."""
    source = Weights("file", weights) if weights else Weights(record.backbone.source)
    return load_backbone(record.backbone.name, source, len(record.classes), record.preprocess.size)
