"""What a run is going to do: everything that is known before an image is decoded."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import timm.data

from mosa_deploy.adapters.probe import check_features
from mosa_deploy.adapters.restore import describe_backbone
from mosa_deploy.backbones.foldable import Transformer, blocks_of, check_style
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, PROBES, SPLIT_METHODS, AdapterConfig, Method
from mosa_deploy.bundles.answers import PerLabel
from mosa_deploy.bundles.decode import WHITE_16, Decode
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.probe_features import Features
from mosa_deploy.bundles.record import TASK_NAME, TASK_NAME_RULE, Backbone, Record
from mosa_deploy.errors import ConfigError, DataError
from mosa_deploy.utils.versions import git_commit, library_versions
from training import run
from training.config import TuneConfig
from training.devices import choose_device
from training.extend import Beginning, Extension, beginning
from training.optimiser import check_optimiser, optimiser_remarks
from training.precision import choose_precision, why_precision
from training.presets import backbone_remarks, choose_image_size, preset, task_of
from training.ranks import Ranks
from training.recipe import Recipe, adapter_config
from training.recipes import CONVENTIONS, Conventions, images_of
from training.recipes import remarks as recipe_remarks
from training.tasks import run_name
from training.tasks.base import Splits, Task
from training.tasks.subset import Subset


@dataclass(frozen=True)
class Plan:
    """The settings of a run, its images and its backbone."""

    config: TuneConfig
    """What the user said, with the size of the images, their decoding and the augmentation that were chosen."""
    name: str
    method: Method
    recipe: Recipe
    device: str
    precision: str
    computed: str
    """Where and how, in words."""
    splits: Splits
    model: Transformer
    backbone: Backbone
    preprocess: Preprocess
    beginning: Beginning | None = None
    """The task that the run starts from."""

    @classmethod
    def of(cls, config: TuneConfig, method: Method, ranks: Ranks) -> Self:
        """Check the settings, find the images, and load the backbone.

        Raises:
            MosaError: an option, the data or the backbone cannot be used.
        """
        task = task_of(config)
        name = run_name(config.task) if config.name is None else config.name
        if not re.fullmatch(TASK_NAME, name):
            raise ConfigError(f"--name {name}: {TASK_NAME_RULE}")
        recipe = config.resolve(preset(task, config.backbone))
        check_optimiser(recipe, config.execution, ranks.count)
        device = choose_device(config.device)
        jpeg = run.jpeg_of(config, folder_of(config, name))
        asked = precision_of(config, name)
        precision = choose_precision(asked, device)
        how = "" if method in PROBES else f", {why_precision(asked, device)}"
        start = beginning(config)
        weights = Weights.choose(config.backbone_weights, config.random_weights)
        # Data before weights, which may have to be downloaded.
        splits = find_splits(task, config)
        if isinstance(start, Extension):
            start.classes(splits)
        size = choose_image_size(config, recipe.backbone, device)
        given = config.given()
        known = backbone_remarks(config, recipe, size, device)
        own = recipe_remarks(recipe.recipe, given, task.name) + optimiser_remarks(recipe, given)
        model = load_backbone(recipe.backbone, weights, img_size=size)
        check_features(model, features_of(config, method))
        if method not in PROBES:
            check_style(model, recipe.style)
        if method not in (*PROBES, *BACKBONE_METHODS):
            adapter_config(recipe).adapted(blocks_of(model))
        described = describe_backbone(recipe.backbone, weights.source, model)
        if start is not None:
            start.check(described, adapter_config(recipe))
        decode = Decode(white=config.white_level or WHITE_16, jpeg=jpeg)
        return cls(
            replace(
                config,
                image_size=size,
                jpeg=jpeg,
                augmentation=replace(config.augmentation, augment=recipe.augment),
            ),
            name,
            method,
            recipe,
            device,
            precision,
            f"{device}{how}{ranks}",
            replace(splits, remarks=(*known, *splits.remarks, *own)),
            model,
            described,
            start.record.preprocess if isinstance(start, Extension) else preprocess_of(model, recipe, task, decode),
            start,
        )

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self.classes)} {'labels' if self.recipe.multi_label else 'classes'},"
            f" {self.splits.note}; {self.recipe.backbone} on"
            f" {self.computed}"
        )

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return folder_of(self.config, self.name)

    @property
    def extension(self) -> Extension | None:
        """The task that gets more classes, if the run adds some."""
        return self.beginning if isinstance(self.beginning, Extension) else None

    @property
    def classes(self) -> tuple[str, ...]:
        """What the head tells apart: the classes of the images, after those that were there before."""
        return self.splits.classes if self.extension is None else self.extension.classes(self.splits)

    @property
    def features(self) -> Features:
        """What the head reads."""
        return features_of(self.config, self.method)

    @property
    def conventions(self) -> Conventions:
        """What the recipe fixes beside its settings."""
        return CONVENTIONS[self.recipe.recipe]

    def record(self, adapter: AdapterConfig | None) -> Record:
        """The record of the run's bundle, without metrics and calibration."""
        split = self.method in SPLIT_METHODS
        return Record(
            task=self.name,
            dataset=self.config.task,
            backbone=self.backbone,
            method=self.method,
            form="split" if split else "merged",
            adapter=adapter,
            features=self.features,
            classes=self.classes,
            preprocess=self.preprocess,
            temperature=1.0,
            per_label=PerLabel.uncalibrated(len(self.classes)) if self.recipe.multi_label else None,
            metrics={},
            seed=self.config.seed,
            versions=library_versions(),
            git_commit=git_commit(),
        )


def folder_of(config: TuneConfig, name: str) -> Path:
    """The folder of the run of this name."""
    return config.out or Path("runs") / name


def precision_of(config: TuneConfig, name: str) -> str:
    """The precision that is asked for; a run that is resumed goes on in its own, unless another is named.

    Raises:
        ConfigError: the settings of the run are damaged.
    """
    begun = run.read_settings(folder_of(config, name)) if config.resume and config.precision == "auto" else {}
    return str(begun.get("precision", config.precision))


def find_splits(task: Task, config: TuneConfig) -> Splits:
    """The images of a task, as many as the options ask for.

    Raises:
        DataError: there are none to tune on.
    """
    splits = task.splits(config.data_dir, config.split)
    if not splits.train:
        raise DataError(
            f"--data-dir {config.data_dir} holds a test set alone: add train/<class>/<file> to tune on, or evaluate a"
            " tuned task on it"
        )
    return Subset(config.shots, config.fraction, config.draw).of(splits)


def features_of(config: TuneConfig, method: Method) -> Features:
    """What the head of a method reads."""
    return "attended" if method == "attentive" else config.features


def preprocess_of(model: Transformer, recipe: Recipe, task: Task, decode: Decode) -> Preprocess:
    """How images become the model's input: as timm has it, but for what recipe, task and options say."""
    images = images_of(recipe.recipe, task.name)
    preprocess = Preprocess.from_timm(timm.data.resolve_model_data_config(model) | images, task.squash)
    return preprocess.model_copy(update={"decode": decode})
