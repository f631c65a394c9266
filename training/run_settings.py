"""`config.json` in the folder of a run: its settings, in every version of the format."""

import dataclasses
import json

from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.decode import PILLOW_PIXELS
from mosa_deploy.bundles.format_version import VERSION_KEY, Fields, FileFormat
from mosa_deploy.errors import ConfigError
from training.config import TuneConfig
from training.recipe import Recipe


def state_version(fields: Fields) -> Fields:
    """Upgrade `config.json` to version 2, which adds nothing but the version itself."""
    return fields


def add_images(fields: Fields) -> Fields:
    """Upgrade `config.json` to version 3, which says how images are labelled, grouped, drawn and read, and more."""
    images: Fields = {"labels": [], "group": None, "white_level": None, "max_pixels": PILLOW_PIXELS}
    draws: Fields = {"shots": None, "fraction": None, "draw": 0, "activate": AdapterConfig.activate}
    return images | draws | {"adapt_blocks": None, "ema": 0.0} | fields


def add_recipe(fields: Fields) -> Fields:
    """Upgrade `config.json` to version 4: the recipe, the features that a probe reads, and how classes are weighed."""
    return {"features": "cls", "recipe": "ours", "balance": "none", "select": "accuracy"} | fields


def add_steps(fields: Fields) -> Fields:
    """Upgrade `config.json` to version 5: how images are changed in training, and how weights are updated."""
    images: Fields = {"augment": "none", "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}
    updates: Fields = {"opt": "adamw", "sched": "cosine", "clip_grad": 0.0, "patience": 0}
    model: Fields = {"head_dropout": 0.0, "head_samples": 1, "layer_decay": 1.0, "drop_path": 0.0}
    return images | updates | model | fields


def add_jpeg(fields: Fields) -> Fields:
    """Upgrade `config.json` to version 6, which says whether the JPEG decoder may make large photos smaller."""
    return {"jpeg": "full"} | fields


def add_groups(fields: Fields) -> Fields:
    """Upgrade `config.json` to version 7, which says in how many groups a RepAdapter's up projection is."""
    return {"groups": None} | fields


def add_labels(fields: Fields) -> Fields:
    """Upgrade `config.json` to version 8, which says whether an image may have several labels: before it had one."""
    return {"loss": "ce"} | fields


def add_start(fields: Fields) -> Fields:
    """Upgrade `config.json` to version 9: the run that it starts from, and the file of tasks that are tuned at once."""
    return {"init": None, "extend": None, "exemplars": None, "joint": None, "sampling_temperature": None} | fields


def add_distillation(fields: Fields) -> Fields:
    """Upgrade `config.json` to version 10: the weight of distillation, of which runs that added classes had none."""
    return {"distil": 0.0 if fields.get("extend") else None} | fields


RUN_FORMAT = FileFormat(
    "config.json",
    ConfigError,
    remedy="copy the run again, or tune the task into another --out",
    migrations=(
        *(state_version, add_images, add_recipe, add_steps, add_jpeg, add_groups, add_labels, add_start),
        add_distillation,
    ),
    unstated=1,
)


def describe(config: TuneConfig, recipe: Recipe, precision: str) -> str:
    """The text of `config.json`: all settings that decide the run's result, and where its images were."""
    settings = {
        VERSION_KEY: RUN_FORMAT.newest,
        "task": config.task,
        "name": config.name,
        "method": config.method,
        "features": config.features,
        "seed": config.seed,
        "split": config.split,
        "precision": precision,
        "image_size": config.image_size,
        "white_level": config.white_level,
        "jpeg": config.jpeg,
        "max_pixels": config.reading.max_pixels,
        "random_weights": config.random_weights,
        "backbone_weights": config.backbone_weights and str(config.backbone_weights),
        "data_dir": config.data_dir and str(config.data_dir),
        "labels": [str(path) for path in config.labels],
        "group": config.group,
        "shots": config.shots,
        "fraction": config.fraction,
        "draw": config.draw,
        "init": config.starting.init and str(config.starting.init),
        "extend": config.starting.extend and str(config.starting.extend),
        "exemplars": config.starting.exemplars,
        "distil": config.starting.distil if config.starting.extend else None,
        "joint": config.joining.joint and str(config.joining.joint),
        "sampling_temperature": config.joining.joint and config.joining.sampling_temperature,
        **dataclasses.asdict(recipe),
    }
    return json.dumps(settings, indent=2) + "\n"


def parse_settings(content: str | bytes, where: str) -> Fields:
    """Read the settings of a `config.json` of any version. `where` names the file in errors.

    Raises:
        ConfigError: it is damaged, or was written by a newer release.
    """
    try:
        return RUN_FORMAT.upgrade(json.loads(content), where)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{where} is damaged ({type(error).__name__}): {RUN_FORMAT.remedy}") from None


def differences(before: Fields, after: Fields) -> list[str]:
    """One text for each setting in which two runs differ."""
    names = sorted(before.keys() | after.keys())
    return [
        f"{name} was {before.get(name)}, is {after.get(name)}" for name in names if before.get(name) != after.get(name)
    ]
