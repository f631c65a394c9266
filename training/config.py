"""The options of `mosa tune`, and the recipe that they and the task's preset give."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from mosa_deploy.backbones.names import is_embedded
from mosa_deploy.bundles.adapter_config import SPLIT_METHODS, Method, Target
from mosa_deploy.bundles.probe_features import LinearFeatures
from mosa_deploy.errors import ConfigError, unknown_name
from training import recipes
from training.config_faults import misplaced, out_of_range, refused_options
from training.method_settings import (
    AUTO,
    LACKING,
    OF_STYLE,
    SPLIT_ONLY,
    UNCHANGED,
    WITHOUT_AUGMENTATION,
    usual_settings,
)
from training.recipe import Recipe, recipe_faults
from training.tune_options import (
    AugmentOptions,
    Balance,
    ExecutionOptions,
    JointOptions,
    LabelOptions,
    OptimOptions,
    ReadOptions,
    Select,
    StartOptions,
    StreamOptions,
)

EMA_DECAY = 0.99
"""That of `--ema`: an average over about a hundred steps."""


@dataclass(frozen=True)
class TuneConfig:
    """Tune one task's adapter and head on a frozen timm vision transformer.

    Options that you leave out take the value of the task's preset, or of another --recipe.
    """

    task: str = "folder"
    """folder for your own images, digits, sprites-location, sprites-orientation, sprites-labels, cifar10, eurosat, or a
    benchmark such as vtab/eurosat or fgvc/cub; `python -m training.tasks` lists all of them."""
    name: str | None = None
    """Name of the tuned task in its run and in the service. Default: the value of --task."""
    backbone: str | None = None
    """Name of a plain timm ViT, DINOv3 or Swin, or of one that `mosa backbone list` shows."""
    backbone_weights: Path | None = None
    """Load the backbone's weights from this .safetensors, .npz or torch (.pth, .pt, .bin, .tar) file instead of timm's
    hub."""
    random_weights: bool = False
    """Use random weights instead of pre-trained ones: for a trial run that downloads nothing."""
    method: str = "mosa"
    """mosa (split adapter), adapter (dense adapter), mosl (split LoRA), lora, repadapter (linear bottlenecks before
    attention and FFN), ssf (scales and shifts after each operation), linear (logistic regression on frozen features),
    attentive (a linear head on the patches, weighed by a learned query), bitfit (the backbone's biases), full (all of
    the backbone), or auto (tries the probes, adapter, lora, mosa in both styles and ssf, and keeps the best)."""
    features: LinearFeatures = "cls"
    """What a linear head reads: cls (the class token, or the backbone's pooled feature), cls+mean (with the mean of the
    patches), or blocks (the class tokens of the last four blocks and the mean of the patches)."""
    bottleneck: int | None = None
    """r, the inner width of the adapter; for lora and mosl, the rank."""
    experts: int | None = None
    """E, the number of experts: the sparse parts into which a projection is split."""
    share: str | None = None
    """The projection that all experts share, which stays dense: down, up or none."""
    scale: float | None = None
    """s, the factor that multiplies the adapter's output."""
    style: str | None = None
    """Where the adapter sits in a block: parallel (beside the FFN, which a fold widens), for mosa also repadapter
    (before attention and FFN, folded at the same shapes), or pfeiffer or houlsby (exported unfolded)."""
    targets: tuple[Target, ...] | None = None
    """The layers of each block to update: any of q, k, v, qkv, proj, fc1, fc2."""
    groups: int | None = None
    """g: part i of g of the up projection reads part i of the r hidden units. 1 is dense."""
    epochs: int | None = None
    """Number of passes over the training images."""
    batch_size: int | None = None
    """Images per training step. Halve it if the GPU runs out of memory."""
    lr: float | None = None
    """Peak learning rate of AdamW."""
    passes: int | None = None
    """Forward passes per batch, 1 or 2. With two, the consistency loss keeps their predictions close."""
    consistency: float | None = None
    """Weight of the consistency loss between the two passes."""
    merge_scale: str | None = None
    """Factor that multiplies the sum of the experts when they are merged: expectation (1 / E), learned (fitted on
    validation) or a number."""
    dense_epochs: int | None = None
    """Number of final epochs that train all experts at once, as the merged adapter."""
    activate: str | None = None
    """How experts are drawn: per-pass (one for each pass of a batch) or balanced (all of them in each pass, for equal
    groups of images)."""
    adapt_blocks: int | None = None
    """Number of last blocks to adapt, instead of all."""
    ema: bool = False
    """Keep a moving average of the weights; the average is what is selected and saved."""
    ema_decay: float | None = None
    """Decay of this average per step. Default: 0.99."""
    recipe: str = "ours"
    """ours (the task's preset), paper (the MoSA paper's recipe for the benchmark, on other tasks that for VTAB: direct
    resize, no augmentation, r = 16, lr 5e-3, 100 epochs), or reference (paper, with the habits of the paper's code)."""
    balance: Balance | None = None
    """Give all classes the same weight, however many images they have: in the loss, by the sampler (images of small
    classes are drawn more often), or none."""
    select: Select | None = None
    """What chooses the best epoch on validation: accuracy, balanced (the mean accuracy of the classes), loss, or map
    (the mean average precision, for several labels per image)."""
    precision: str = "auto"
    """Precision of the training steps: bf16, fp32, or auto (bf16 on CUDA and on CPUs that multiply in it, else fp32).
    Validation is always in fp32."""
    image_size: int | None = None
    """Height and width of the input in pixels. Default: the backbone's own; for DINOv2, 224 with a GPU and 98 on a
    CPU."""
    seed: int = 0
    """Seed of all randomness in the run."""
    data_dir: Path | None = None
    """Folder, or tar or zip archive, of the task's images."""
    labels: tuple[Path, ...] = ()
    """Table of the images' classes, for the task folder: CSV or JSONL with the columns file and label, and perhaps
    split and group. Files are named relative to --data-dir or to the table. Several tables may be train.csv, val.csv
    and test.csv."""
    group: str | None = None
    """Which images stay together in one set, for the task folder: folder (those in one folder below their class),
    prefix (files with the same name up to the first _, -, . or space), or a column of --labels."""
    split: str | None = None
    """How to split the images, for folder and eurosat: percentages of train, validation and test such as 80-10-10.
    eurosat takes vtab, full, or a file with one `train|validation|test <class>/<file>` per line, too; vtab/... 1000."""
    shots: int | None = None
    """Tune on this many training images of each class. Default: all of them."""
    fraction: float | None = None
    """Tune on this share of each class's training images."""
    draw: int = 0
    """Seed of the images that --shots or --fraction draw. It is apart from --seed."""
    white_level: int | None = None
    """The value of 16-bit grey that is white, 1 to 65535: 4095 for a camera of 12 bits. The bundle keeps it."""
    jpeg: Literal["auto", "scaled", "full"] = "auto"
    """How JPEGs are decoded: scaled (the decoder itself makes a large photo smaller, but never below twice the size to
    which it is resized, in a fifth of the time), full (every pixel), or auto (scaled; a run that is resumed goes on as
    it began). The bundle keeps it."""
    starting: StartOptions = field(default_factory=StartOptions)
    """Start from an earlier run."""
    joining: JointOptions = field(default_factory=JointOptions)
    """Several tasks at once, with one adapter and a head for each."""
    labelling: LabelOptions = field(default_factory=LabelOptions)
    """Several labels per image."""
    reading: ReadOptions = field(default_factory=ReadOptions)
    """Which images are left out."""
    streaming: StreamOptions = field(default_factory=StreamOptions)
    """How sets are read that are too large for memory."""
    augmentation: AugmentOptions = field(default_factory=AugmentOptions)
    """How training images are changed each time they are seen."""
    optimisation: OptimOptions = field(default_factory=OptimOptions)
    """How the weights are updated."""
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    """How a step is computed. The result is the same to rounding, so --resume may change these."""
    skip_duplicates: bool = False
    """Do not look for images that two sets have in common."""
    out: Path | None = None
    """Folder of the run. Default: runs/<name>."""
    trials: int | None = None
    """Number of trials, all methods together. The probes are one; adapter, lora, mosa in both styles and ssf get at
    least one each, so it takes 6 or more (3 on a Swin, which has adapter and mosa alone)."""
    worth: float | None = None
    """Points of validation accuracy by which an adapter must beat the best probe to be chosen: it needs a backbone pass
    of its own, and all probes share one."""
    resume: bool = False
    """Continue the run in --out after its last finished epoch."""
    device: str = "auto"
    """Where to train: cpu, cuda, or auto (CUDA if it is available)."""

    @property
    def inputs(self) -> list[Path]:
        """The files and folders that it reads."""
        given = self.data_dir, self.backbone_weights
        return [*(path for path in given if path is not None), *self.labels]

    def on_every_machine(self) -> Self:
        """The same with inputs whose paths mean the same wherever they are read."""
        given = {"data_dir": self.data_dir, "backbone_weights": self.backbone_weights}
        paths: dict[str, Any] = {name: path.absolute() for name, path in given.items() if path is not None}
        return dataclasses.replace(self, **paths, labels=tuple(path.absolute() for path in self.labels))

    def checked_method(self) -> Method | Literal["auto"]:
        """The method, checked.

        Raises:
            ConfigError: there is no such method; names the nearest ones.
        """
        known = [*get_args(Method), AUTO]
        if self.method not in known:
            raise ConfigError(unknown_name("method", self.method, known))
        return cast(Method | Literal["auto"], self.method)

    def given(self) -> dict[str, Any]:
        """The settings that the command line gives."""
        fields = {field.name for field in dataclasses.fields(Recipe)} - {"ema"}
        given = {name: value for name, value in self.stated().items() if name in fields}
        if self.ema_decay is not None:
            return given | {"ema": self.ema_decay}
        return given | ({"ema": EMA_DECAY} if self.ema else {})

    def stated(self) -> dict[str, Any]:
        """All options that the command line gives."""
        options = vars(self) | vars(self.augmentation) | vars(self.optimisation) | vars(self.labelling)
        return {name: value for name, value in options.items() if value is not None}

    def loop_options(self) -> list[str]:
        """The options that are given and that say how the training loop works, which probes do not have."""
        groups = (self.optimisation, self.execution)
        return [name for group in groups for name, value in vars(group).items() if value != getattr(type(group), name)]

    def for_probes(self) -> Self:
        """The same without the options that probes refuse: those of a search are for its adapters."""
        return dataclasses.replace(
            self, augmentation=AugmentOptions(), optimisation=OptimOptions(), execution=ExecutionOptions()
        )

    def for_method(self, method: str, **options: Any) -> Self:
        """The same for one of several methods, without what that method has no use for, and with these options."""
        changes: dict[str, Any] = dict.fromkeys(LACKING.get(method, ())) | options
        return dataclasses.replace(self, method=method, **changes)

    def resolve(self, preset: Recipe) -> Recipe:
        """The preset or another recipe, changed as the command line says. `adapter` and `lora` have one expert.

        Raises:
            ConfigError: an option is out of range or does not fit the method; lists every fault at once.
        """
        if self.recipe not in recipes.SETTINGS:
            raise ConfigError(unknown_name("recipe", self.recipe, recipes.SETTINGS))
        conventions = recipes.CONVENTIONS[self.recipe]
        preset = dataclasses.replace(preset, **recipes.settings_of(self.recipe, self.task))
        refused = refused_options(self) + ([] if preset.multi_label else ["loss"])
        own_style = "" if "style" in refused else self.style or ""
        settings = usual_settings(self.method, toy=is_embedded(self.backbone or preset.backbone))
        settings |= OF_STYLE.get(own_style, {})
        settings |= {name: value for name, value in self.given().items() if name not in refused}
        settings |= {} if self.method in SPLIT_METHODS else SPLIT_ONLY
        settings |= UNCHANGED if self.method in WITHOUT_AUGMENTATION else {}
        recipe = dataclasses.replace(preset, **settings)
        faults = [*misplaced(self, conventions), *self.labelling.faults(self.method, preset.multi_label)]
        faults += [*out_of_range(self), *recipe_faults(recipe)]
        if faults:
            raise ConfigError("; ".join(faults))
        return recipe
