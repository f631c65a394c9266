"""Which backbones are on this machine, and what each is good for."""

from collections.abc import Iterator
from typing import NamedTuple

import timm
import timm.data
import torch
from huggingface_hub import CacheNotFound, HFCacheInfo, constants, scan_cache_dir

from mosa_deploy.backbones import embedded
from mosa_deploy.backbones.foldable import check_foldable
from mosa_deploy.backbones.function import without_init
from mosa_deploy.backbones.names import DEFAULT, FROM_INDEX, IndexBackbone
from mosa_deploy.errors import BackboneError

HUB = "timm/"
"""The owner of timm's repositories on the hub."""


class Entry(NamedTuple):
    """A line of the list."""

    backbone: str
    here: str
    """Where its weights are, or how they get here."""
    megabytes: str
    licence: str
    use: str
    """What it is good for."""


def entries() -> Iterator[Entry]:
    """The backbones that this package knows, and those of timm's in the hub's cache."""
    yield Entry(
        embedded.NAME,
        "yes, in the package",
        _megabytes(embedded.WEIGHTS.stat().st_size),
        "Apache-2.0",
        "trying things out: 32 px, it has seen CIFAR-10 alone",
    )
    cached = cached_models()
    if DEFAULT not in cached:
        yield Entry(DEFAULT, "no: timm's hub has it", "88", "Apache-2.0", "your own photos; it is the default")
    for name, size in cached.items():
        own = "your own photos; it is the default" if name == DEFAULT else use(name)
        yield Entry(name, "yes, in the hub's cache", _megabytes(size), licence(name), own)
    yield from map(of_index, FROM_INDEX.values())


def of_index(backbone: IndexBackbone) -> Entry:
    """The line of a backbone that a package of the index holds."""
    size = f"{backbone.megabytes} to fetch"
    here = f"no: `{backbone.command}`"
    if backbone.is_here():
        size, here = _megabytes(backbone.weights.stat().st_size), f"yes, in {backbone.weights.parent}"
    return Entry(backbone.name, here, size, backbone.licence, f"your own photos, without a hub; {backbone.about}")


def cached_models() -> dict[str, int]:
    """Name -> bytes of timm's models in the hub's cache."""
    try:
        found: HFCacheInfo = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return {}
    sizes = {repo.repo_id.removeprefix(HUB): repo.size_on_disk for repo in found.repos if repo.size_on_disk}
    return {name: sizes[name] for name in sorted(sizes) if timm.is_model_pretrained(name)}


def use(name: str) -> str:
    """What a model of timm's is good for."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, **without_init(name))
        check_foldable(model, name)
    except BackboneError as error:
        return f"no method: {error}"
    height, width = timm.data.resolve_model_data_config(model)["input_size"][1:]
    return f"your own images, {height} x {width} px unless --image-size says otherwise"


def licence(name: str) -> str:
    """The licence that timm states for a model."""
    known = timm.get_pretrained_cfg(name)
    return (known and known.license) or "not stated"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}"
