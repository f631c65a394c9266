"""Read what timm leaves beside a checkpoint: the hub's `config.json`, and the `args.yaml` of its training script."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import timm.data
import yaml
from pydantic import ValidationError

from mosa_deploy.backbones.names import as_timm
from mosa_deploy.bundles.decode import TIMM
from mosa_deploy.bundles.model_args import CHECKS, ModelArgs
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import BackboneError, DataError
from mosa_deploy.utils.text import decode_text

ARGS_FILE = "args.yaml"

Settings = Mapping[str, Any]

SHOWN_BY_TENSORS = {
    "depth", "embed_dim", "final_norm", "in_chans", "init_values", "mlp_ratio", "num_classes", "patch_size", "pre_norm",
    "proj_bias", "qk_norm", "qkv_bias", "scale_attn_norm", "scale_mlp_norm",
}  # fmt: skip
"""Arguments of a model that need no reading: with other values the tensors would not fit."""

WITHOUT_EFFECT = {
    "attn_drop_rate", "drop_block_rate", "drop_path_rate", "drop_rate", "dynamic_img_pad", "dynamic_img_size",
    "fix_init", "img_size", "patch_drop_rate", "pos_drop_rate", "proj_drop_rate", "strict_img_size", "weight_init",
}  # fmt: skip
"""Arguments that act in training alone, or that the size of the images decides."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in an `args.yaml`.

    Raises:
        DataError: it is not a mapping.
    """
    try:
        content = yaml.safe_load(decode_text(path.read_bytes()))
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a YAML mapping: repair it, or move it elsewhere")
    return content


def model_args(settings: Settings, where: str) -> ModelArgs:
    """The arguments of a model that no tensor shows; `settings` are its `model_args` and its pooling.

    Raises:
        BackboneError: there are others, or a value is of no use.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    taken = {name: value for name, value in given.items() if name in CHECKS}
    odd = sorted(given.keys() - taken.keys() - SHOWN_BY_TENSORS - WITHOUT_EFFECT)
    if odd:
        said = ", ".join(f"{name} {given[name]}" for name in odd)
        raise BackboneError(f"{where}: {said} cannot be kept: bring a model without that")
    try:
        return ModelArgs.read(taken)
    except (TypeError, ValueError) as error:
        raise BackboneError(f"{where}: {error}") from None


def preprocess(settings: Settings, pretrained_cfg: Settings, where: str) -> Preprocess:
    """How timm would read images by these settings of its training script and this config of a model.

    Raises:
        DataError: `Preprocess` does not support that.
    """
    try:
        config = timm.data.resolve_data_config(dict(settings), pretrained_cfg=dict(pretrained_cfg))
        if config["input_size"][0] != 3:
            raise ValueError(f"images of {config['input_size'][0]} channels")
        if config["crop_mode"] not in ("center", "squash"):
            raise ValueError(f"crop_mode {config['crop_mode']}")
        return Preprocess.from_timm(config).model_copy(update={"decode": TIMM})
    except ValidationError as error:
        fault = error.errors()[0]
        said = f"{'.'.join(map(str, fault['loc']))} {fault['input']}: {fault['msg']}"
    except (ValueError, AssertionError, TypeError, KeyError) as error:
        said = str(error) or "its data settings cannot be read"
    raise DataError(f"{where}: {said}: give --preprocess with a preprocessor_config.json that has the same steps")


def pretrained_cfg(name: str) -> dict[str, Any]:
    """The config that timm itself has of a model."""
    found = timm.get_pretrained_cfg(as_timm(name))
    return {} if found is None else found.to_dict()
