"""Whether a method fits a backbone: found out before weights are fetched and images are read."""

from functools import cache

from mosa_deploy.adapters.probe import check_features
from mosa_deploy.backbones.foldable import Transformer, blocks_of, check_style
from mosa_deploy.backbones.load import outline_of
from mosa_deploy.bundles.adapter_config import PROBES
from training.config import TuneConfig
from training.method_settings import AUTO
from training.optimiser import check_optimiser
from training.recipe import Recipe, adapter_config


@cache
def outline(backbone: str, size: int | None) -> Transformer:
    """The outline of a backbone, made once; see `outline_of`."""
    return outline_of(backbone, None if size is None else (size, size))


def check_fit(config: TuneConfig, preset: Recipe) -> None:
    """Check that a run can be made of these options.

    Raises:
        ConfigError: an option is out of range, or the backbone has fewer blocks than --adapt-blocks.
        BackboneError: the backbone cannot be used, or the method does not fit it.
    """
    recipe = config.resolve(preset)
    model = outline(recipe.backbone, config.image_size)
    check_optimiser(recipe, config.execution)
    if config.method in PROBES:
        check_features(model, "attended" if config.method == "attentive" else config.features)
        return
    if config.method == AUTO:
        return
    adapter = adapter_config(recipe)
    check_style(model, adapter.style)
    adapter.adapted(blocks_of(model))
