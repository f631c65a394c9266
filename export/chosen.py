"""What a conversion takes of everything that was found, and what it says about that."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import timm.data

from export import timm_files
from export.facts import Fact, Facts
from export.options import ConvertConfig
from export.processor import read_processor
from mosa_deploy.backbones.foldable import Vit
from mosa_deploy.backbones.function import arguments, set_function
from mosa_deploy.backbones.transformers import layer_norm_eps
from mosa_deploy.bundles.decode import TIMM, TRANSFORMERS
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.bundles.record import Record
from mosa_deploy.errors import ConfigError

FLAGS = {"global_pool": "--pool", "fc_norm": "--fc-norm", "act_layer": "--act", "norm_eps": "--norm-eps"}
"""The flag by which a user gives an argument of the model."""


TORCHVISION: dict[str, Any] = {
    "crop_pct": 224 / 256,
    "interpolation": "bilinear",
    "mean": timm.data.IMAGENET_DEFAULT_MEAN,
    "std": timm.data.IMAGENET_DEFAULT_STD,
}
"""In what the transforms of torchvision's ViTs differ from timm's."""

Library = Literal["timm", "torchvision", "transformers"]

SHOWN = 10
"""Class names in the line that says where they are from."""


def given_or_found(config: ConvertConfig, facts: Facts) -> Fact[Preprocess] | None:
    """How images are read, by `--preprocess` or by the files; None if neither says it.

    Raises:
        DataError: the file of `--preprocess` cannot be read.
        ConfigError: two files, or a file and `--image-size`, contradict each other.
    """
    if config.preprocess is not None:
        resampler = config.resampler or "torchvision"
        return Fact(read_processor(config.preprocess, resampler), f"--preprocess {config.preprocess}")
    found = choose_preprocess(facts.preprocess)
    if found is not None and config.image_size not in (None, *found.value.size):
        raise ConfigError(f"--image-size {config.image_size}: {found.where} says {sides(found.value)}; drop one")
    return found


def choose_preprocess(facts: Sequence[Fact[Preprocess]]) -> Fact[Preprocess] | None:
    """The one way to read images that all files agree on; None if no file says any.

    Raises:
        ConfigError: two files contradict each other.
    """
    for other in facts[1:]:
        first = facts[0].value.model_dump()
        apart = [name for name, value in other.value.model_dump().items() if value != first[name]]
        if apart:
            raise ConfigError(
                f"{facts[0].where} and {other.where} contradict each other ({', '.join(apart)}):"
                " choose one with --preprocess"
            )
    return facts[0] if facts else None


def choose_model_args(facts: Sequence[Fact[ModelArgs]], flags: ModelArgs) -> Fact[ModelArgs]:
    """What the flags say, and where they are silent, what the files say.

    Raises:
        ConfigError: two files contradict each other, and no flag decides.
    """
    chosen: dict[str, Fact[Any]] = {}
    for fact in (Fact(flags, "the flags"), *facts):
        for name, value in fact.value.given().items():
            known = chosen.setdefault(name, Fact(value, fact.where))
            if known.value != value and known.where != "the flags":
                way_out = f"give {FLAGS[name]}" if name in FLAGS else "repair one of them"
                raise ConfigError(f"{name} is {known.value} in {known.where}, but {value} in {fact.where}: {way_out}")
    args = ModelArgs(**{name: fact.value for name, fact in chosen.items()})
    return Fact(args, ", ".join(dict.fromkeys(fact.where for fact in chosen.values())))


def timms_own(name: str, model: Vit, library: Library) -> Fact[Preprocess]:
    """How timm reads images for a backbone, decoded as the library does with which the task was tuned.

    torchvision's ViTs have transforms of their own.

    Raises:
        DataError: `Preprocess` does not support that.
    """
    own = timm_files.preprocess({}, cast(dict[str, Any], model.pretrained_cfg), f"timm's config of {name}")
    if library == "torchvision":
        where = "torchvision's transforms of its ViTs, since no file says otherwise: give --preprocess if yours differ"
        return Fact(own.model_copy(update=TORCHVISION), where)
    if library == "timm":
        return Fact(own, f"timm's config of {name}, since no file says otherwise")
    warned = f"timm's config of {name}, since no preprocessor_config.json was found: give --preprocess"
    return Fact(own.model_copy(update={"decode": TRANSFORMERS}), warned, known=False)


def untold(config: ConvertConfig, facts: Facts, model: Vit) -> Iterator[str]:
    """What to say if neither a file nor a flag says what the model computes with its tensors."""
    if facts.model_args or config.model_args != ModelArgs():
        return
    own = arguments(model)
    yield (
        f"no file says what {config.backbone} computes, so it is as timm has it: pools by '{own['global_pool']}',"
        f" activation {own['act_layer']}, {own['num_heads']} heads; otherwise put its config.json beside it, or give"
        " --pool, --fc-norm, --act"
    )


def fit_eps(model: Vit, given: ModelArgs, tuned: float | None) -> Iterator[str]:
    """Set the eps of a model, in place, to that with which it was tuned, if neither flags nor files say it; say so."""
    if given.norm_eps is None and tuned is not None and tuned != layer_norm_eps(model):
        set_function(model, ModelArgs(norm_eps=tuned))
        yield f"norm_eps {tuned:g}: that of a ViT of transformers without a config.json; otherwise give --norm-eps"


def resampled(trained: Fact[Any] | None, preprocess: Preprocess, of_transformers: bool) -> Iterator[str]:
    """What to say if position embeddings are resampled, which timm and transformers do in different ways."""
    if trained is not None and trained.value not in (preprocess.size[0], list(preprocess.size)):
        yield (
            f"{trained.where} has image_size {trained.value}, images are {sides(preprocess)}: the position embeddings"
            " are resampled as timm does it"
            + (", so probabilities do not agree with transformers' to 1e-5" if of_transformers else "")
        )


def taken(record: Record, preprocess: Fact[Preprocess], classes: Fact[tuple[str, ...]], args: str) -> Iterator[str]:
    """One line for each thing that was taken, and from where."""
    read, decode = record.preprocess, record.preprocess.decode
    crop = f", of which the middle {read.crop_pct:.4g} is kept" if read.crop_pct < 1 else ""
    yield (
        f"images: {sides(read)}, {read.resize}{crop}, {read.interpolation} as {read.resampler} rounds, mean"
        f" {_numbers(read.mean)}, std {_numbers(read.std)}; from {preprocess.where}"
    )
    library = "timm" if decode == TIMM else "transformers"
    turned = "turned by EXIF" if decode.orientation == "exif" else "as stored, whatever EXIF says"
    yield (
        f"decoding: as {library} does: {turned}, the hidden colours of transparent pixels show, grey of 16 bits is cut"
        " off at 255"
    )
    if read.resampler == "torchvision":
        yield (
            "probabilities agree with transformers' default processors on a CPU, but DINOv3's does not round to grey"
            " levels after resizing; its Pillow processors round some pixels otherwise: --resampler pillow"
        )
    more = ", ..." if len(record.classes) > SHOWN else ""
    yield f"classes: {', '.join(record.classes[:SHOWN])}{more}; from {classes.where}"
    if record.backbone.model_args not in (None, ModelArgs()):
        yield f"backbone: {record.backbone.model_args}, other than timm's {record.backbone.name}; from {args}"


def sides(preprocess: Preprocess) -> str:
    """The size of the model's images in words."""
    return "{} x {}".format(*preprocess.size)


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
