"""What a run takes from the run that it starts from: `mosa tune --init RUN` and `--extend RUN`.

Backbone, method and the shape of the adapter are those of that run. `--extend` also takes the name of its task, and how
its images are read; it trains for half of the preset's epochs, with a fifth of the learning rate, and all classes
weigh the same.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, PROBES, SPLIT_METHODS
from mosa_deploy.bundles.record import Record, read_record
from mosa_deploy.errors import ConfigError
from training.config import TuneConfig
from training.method_settings import LACKING, METHODS_OF
from training.presets import preset, task_of
from training.recipe import flag
from training.run_settings import RUN_FORMAT, parse_settings

GENTLE = 0.2
"""The share of the preset's learning rate with which a task gets more classes: the rows of the new ones are fitted
before, and with the whole rate the adapter forgets in the first epochs what the later ones cannot bring back."""

READING = ("jpeg", "white_level")
"""Options of how images are read, which a task keeps when it gets more classes."""


def completed(config: TuneConfig, named: bool = False) -> TuneConfig:
    """The options, with what the run to start from says where they say nothing.

    `named` says that the method is not the default, but was asked for.

    Raises:
        ConfigError: an option contradicts that run, or it cannot be started from; lists every fault at once.
        BundleError: it is no bundle.
    """
    starting = config.starting
    if starting.folder is None or config.joining.joint is not None:
        return config
    record, extends = read_record(starting.folder), starting.extend is not None
    fixed = fixed_options(record)
    if not extends:
        fixed = {name: value for name, value in fixed.items() if name not in READING}
    faults = [*_unfit(config, record, named)]
    for name, value in fixed.items():
        given = getattr(config, name)
        if given not in (None, "auto", value):
            faults.append(f"{flag(name)} {_shown(given)}: it has {_shown(value)}, leave it out")
    weights = config.backbone_weights
    if record.backbone.source == "file" and weights is None:
        weights = _weights(starting.folder)
        if weights is None:
            faults.append("its backbone's weights came from a file: give it again with --backbone-weights")
    if faults:
        raise ConfigError(f"{starting.option}: {'; '.join(faults)}")
    unused = {name for name, methods in METHODS_OF.items() if record.method not in methods}
    unused |= {*LACKING.get(record.method, ())}
    taken: dict[str, Any] = {name: value for name, value in fixed.items() if name not in unused and value is not None}
    taken |= {"method": record.method, "backbone_weights": weights}
    taken["random_weights"] = config.random_weights or (record.backbone.source == "random" and weights is None)
    config = replace(config, **taken)
    return _extended(config, record) if extends else config


def fixed_options(record: Record) -> dict[str, Any]:
    """Option -> the value that follows from a record, for everything that a run which starts from it cannot change."""
    adapter, decode = record.adapter, record.preprocess.decode
    found: dict[str, Any] = {"backbone": record.backbone.name, "image_size": record.preprocess.size[0]}
    found |= {"jpeg": decode.jpeg, "white_level": decode.white}
    if adapter is None:
        return found
    same = ("bottleneck", "experts", "share", "scale", "style", "targets", "groups")
    found |= {name: getattr(adapter, name) for name in same} | {"adapt_blocks": adapter.blocks}
    return found


def _unfit(config: TuneConfig, record: Record, named: bool) -> Iterator[str]:
    """Why a run cannot start from a task."""
    if record.method in (*PROBES, *BACKBONE_METHODS):
        yield f"method {record.method} has no adapter to start from, tune anew"
    elif record.method != config.method and (named or config.method != TuneConfig.method):
        yield f"--method {config.method}: it has {record.method}, leave it out"
    if record.method in SPLIT_METHODS and record.form == "merged":
        yield "its experts are merged, as in a store: give the folder of the run that tuned it"
    if config.starting.extend is not None and (record.multi_label or config.labelling.multi_label):
        yield "an image has one class where classes are added: tune several labels per image anew"


def _weights(folder: Path) -> Path | None:
    """The file of backbone weights that the run in a folder was tuned with, if it says so."""
    settings = folder / RUN_FORMAT.name
    if not settings.is_file():
        return None
    name = parse_settings(settings.read_bytes(), str(settings)).get("backbone_weights")
    return Path(name) if name else None


def _extended(config: TuneConfig, record: Record) -> TuneConfig:
    """The options of a task that gets more classes."""
    name = config.name or record.task
    config = replace(config, name=name, out=config.out or Path("runs") / f"{name}-extended")
    if config.merge_scale is None and record.adapter is not None and record.adapter.merge_scale is not None:
        config = replace(config, merge_scale=str(record.adapter.merge_scale))
    recipe = config.resolve(preset(task_of(config), config.backbone))
    mixing = [f"{flag(each)} {value:g}" for each in ("mixup", "cutmix") if (value := getattr(recipe, each))]
    if mixing and config.starting.distil:
        raise ConfigError(f"{', '.join(mixing)}: --extend teaches single images, so drop it, or add --distil 0")
    return replace(
        config,
        epochs=max(1, recipe.epochs // 2) if config.epochs is None else config.epochs,
        lr=GENTLE * recipe.lr if config.lr is None else config.lr,
        balance=config.balance or "sampler",
    )


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else "all" if value is None else str(value)
