"""Find one adapter of PEFT in a folder, and its tensors by the base model's own names."""

import re
from pathlib import Path

from torch import Tensor

from export.peft_settings import SETTINGS
from mosa_deploy.backbones.containers import read_tensors
from mosa_deploy.errors import BundleError, unknown_name

FILES = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
PREFIX = re.compile(r"^(?:base_model\.model\.|module\.)+")
"""What PEFT puts before the base model's names, twice where an adapter was wrapped around an adapter."""

NAMED = re.compile(r"(?<=\.)(lora_A|lora_B|lora_magnitude_vector|ia3_l|modules_to_save)\.(?!(?:weight|bias)$)([^.]+)")
"""An adapter's name in a tensor's, as a state dict of the whole model has it."""


def choose_adapter(folder: Path, name: str | None) -> Path:
    """The folder of one adapter: the folder itself, or the one below it that is called `name`.

    Raises:
        BundleError: there is none of that name, or several without a choice.
    """
    if folder.is_file():
        raise BundleError(f"--from peft {folder} is a file: give the folder that save_pretrained wrote")
    below = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/**/{SETTINGS}"))
    own = (folder / SETTINGS).is_file()
    if name is None or (own and name in ("default", folder.name)):
        if own or not below:
            return folder
        if len(below) == 1:
            return folder / below[0]
        listed = ", ".join(below)
        raise BundleError(f"--from peft {folder} holds {len(below)} adapters, {listed}: choose with --adapter NAME")
    if name not in below:
        known = [*(["default"] if own else []), *below]
        raise BundleError(f"--from peft {folder}: {unknown_name('adapter', name, known)}")
    return folder / name


def read_adapter_tensors(folder: Path, name: str | None) -> dict[str, Tensor]:
    """All tensors of an adapter by the base model's names, in fp32; `name` chooses one of several in one file.

    Raises:
        BundleError: the folder has no file of tensors, or one with several adapters and no choice.
    """
    file = next((folder / known for known in FILES if (folder / known).is_file()), None)
    if file is None:
        raise BundleError(f"--from peft {folder} has no {FILES[0]}: give the folder that save_pretrained wrote")
    raw = {PREFIX.sub("", key): value.float() for key, value in read_tensors(file, "--from peft").items()}
    names = sorted({found[2] for key in raw if (found := NAMED.search(key))})
    if len(names) > 1 and name not in names:
        raise BundleError(f"--from peft {file} holds the adapters {', '.join(names)}: choose with --adapter NAME")
    chosen = name if name in names else next(iter(names), None)
    tensors: dict[str, Tensor] = {}
    for key, value in raw.items():
        found = NAMED.search(key)
        if (found and found[2] != chosen) or ".original_module." in key or key.endswith(".base_layer.weight"):
            continue
        plain = NAMED.sub(r"\1", key).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        tensors[re.sub(r"\.(lora_magnitude_vector|ia3_l)\.weight$", r".\1", plain)] = value
    return tensors
