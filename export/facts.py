"""What lies beside a source and its backbone: how images are read, class names, and what the model computes.

The files of transformers (`config.json`, `preprocessor_config.json`) and of timm (the hub's `config.json`, `args.yaml`,
the arguments inside a checkpoint) are read where the source lies and where `--backbone-weights` lie.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import timm

from export import timm_files
from export.entries import (
    entry_names,
    function_settings,
    other_problem,
    read_entries,
    sigmoid_loss,
    uncertain_settings,
)
from export.options import ConvertConfig
from export.ordered_names import ordered
from export.processor import FILES, read_processor
from mosa_deploy.backbones import transformers
from mosa_deploy.backbones.checkpoints import source_args
from mosa_deploy.bundles.decode import TRANSFORMERS
from mosa_deploy.bundles.model_args import ModelArgs
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import BackboneError, ConfigError

T = TypeVar("T")

CHECKPOINT = re.compile(r"checkpoint-\d+")
"""The name of a folder in which transformers' `Trainer` saves a model."""

MULTI_LABEL = "multi_label_classification"
"""What transformers calls a problem in which each output is answered by itself."""

NO_QUANTITY = "a bundle answers with classes, and no quantity; bring a classifier"

SOFTMAX = (
    "its outputs are answered as a softmax, as timm's inference does, with one class per image; if it was tuned for"
    " several labels per image, give --multi-label"
)
"""What to know of a model whose loss was that of a sigmoid."""

WRAPPER = "timm_wrapper"
"""The kind of a model of timm inside transformers, whose images come from transformers' `load_image`."""

OF_TRANSFORMERS = ("model_type", "hidden_act", "hidden_size", "layer_norm_eps", "num_attention_heads", "vision_config")
"""Fields by which the config of a model of transformers is known."""


@dataclass(frozen=True)
class Fact(Generic[T]):
    """What a file says."""

    value: T
    where: str
    known: bool = True
    """False where nothing says it, and it was made up."""


@dataclass
class Facts:
    """Everything that was found, nearest to the source first."""

    preprocess: list[Fact[Preprocess]] = field(default_factory=list)
    names: list[Fact[tuple[str, ...]]] = field(default_factory=list)
    base_names: list[Fact[tuple[str, ...]]] = field(default_factory=list)
    """Those beside the backbone's weights, which may be of another head."""
    entry_names: list[Fact[tuple[str, ...]]] = field(default_factory=list)
    """Those inside a checkpoint."""
    shown: list[Fact[ModelArgs]] = field(default_factory=list)
    """What the tensors of a model of transformers show."""
    model_args: list[Fact[ModelArgs]] = field(default_factory=list)
    class_map: str | None = None
    """The file by which timm's training script ordered the classes."""
    multi_label: str | None = None
    """Which file, or which option, says that an image may have several labels."""
    image_size: Fact[Any] | None = None
    """The size for which a model of transformers has position embeddings."""
    notes: list[str] = field(default_factory=list)
    """What else the user should know."""


def gather(config: ConvertConfig) -> Facts:
    """Read every file that may say something of the source or its backbone.

    Raises:
        MosaError: a file is damaged, says something that cannot be kept, or is not of a classifier.
    """
    facts = Facts(multi_label="--multi-label" if config.multi_label else None)
    _read_tensors(facts, config)
    own = config.path if config.path.is_dir() else config.path.parent
    _read_folder(facts, config, own)
    _read_training(facts, config, own)
    _read_entries(facts, config)
    if config.backbone_weights is not None:
        weights = config.backbone_weights
        base = weights if weights.is_dir() else weights.parent
        if base.resolve() != own.resolve():
            beside = Facts()
            _read_folder(beside, config, base)
            _add_base(facts, beside)
    return facts


def _read_tensors(facts: Facts, config: ConvertConfig) -> None:
    """Take what the tensors of a model of transformers show: its tokens, and what its classifier reads."""
    tuned = config.path if config.source == "timm" else config.backbone_weights
    if tuned is not None:
        # A file that cannot be read, or holds a head alone, is told apart where its tensors are taken.
        with contextlib.suppress(BackboneError):
            facts.shown.append(Fact(source_args(tuned, f"--from {config.source}"), f"the tensors in {tuned}"))


def _read_entries(facts: Facts, config: ConvertConfig) -> None:
    """Take what a checkpoint of the user's own training holds beside the tensors."""
    entries = read_entries(config.path)
    _check_trained_for(facts, entries, str(config.path))
    for names, key in entry_names(entries):
        where = f"{key} in {config.path}"
        if isinstance(names, str):
            facts.notes.append(f"{where} names no classes that can be taken: {names}; give --classes")
        else:
            facts.entry_names.append(Fact(names, where))
    for settings, key in function_settings(entries):
        where = f"{key} in {config.path}"
        facts.model_args.append(Fact(timm_files.model_args(settings, where), where))
    said = uncertain_settings(entries)
    if said and config.preprocess is None:
        facts.notes.append(
            f"{config.path} says {said}, which is not taken: give --preprocess, --image-size or a config.json"
        )


def _check_trained_for(facts: Facts, entries: dict[str, Any], where: str) -> None:
    """Take whether an image has several labels, and note a sigmoid's loss.

    Raises:
        ConfigError: the settings in a checkpoint say that it answers with a quantity.
    """
    if said := other_problem(entries):
        if "regression" in said.lower():
            raise ConfigError(f"{where} says {said}: {NO_QUANTITY}")
        facts.multi_label = facts.multi_label or f"{said} in {where}"
    if facts.multi_label is None and (said := sigmoid_loss(entries)):
        facts.notes.append(f"{where} says {said}: {SOFTMAX}")


def _add_base(facts: Facts, base: Facts) -> None:
    """Add what lies beside the backbone. How timm's base read images says nothing where the source says it itself."""
    timms = facts.preprocess and all(Path(fact.where).name == transformers.CONFIG_FILE for fact in base.preprocess)
    facts.preprocess += [] if timms else base.preprocess
    facts.base_names += base.names
    facts.model_args += base.model_args
    facts.multi_label = facts.multi_label or base.multi_label
    facts.image_size = facts.image_size or base.image_size


def _read_folder(facts: Facts, config: ConvertConfig, folder: Path) -> None:
    path = folder / transformers.CONFIG_FILE
    found = transformers.read_config(folder)
    _read_problem(facts, found, str(path))
    if isinstance(found.get("architecture"), str):
        _read_hub_config(facts, config, found, str(path))
    elif any(name in found for name in OF_TRANSFORMERS):
        try:
            facts.model_args.append(Fact(transformers.model_args(found), str(path)))
        except BackboneError as error:
            raise BackboneError(f"{path}: {error}; bring another model") from None
        size = (found.get("vision_config") or found).get("image_size")
        facts.image_size = None if size is None else Fact(size, str(path))
    labels, numbers = found.get("id2label"), found.get("label2id")
    if config.classes is None and isinstance(labels, dict) and labels:
        facts.names.append(Fact(_in_order(labels, numbers, str(path)), f"id2label in {path}"))
    elif config.classes is None and (labels or numbers):
        key = "id2label" if labels else "label2id"
        try:
            facts.names.append(Fact(ordered(labels or numbers), f"{key} in {path}"))
        except ValueError as error:
            raise ConfigError(f"{path}: {key}: {error}; repair it, or give --classes") from None
    processor = _find_processor(folder)
    if config.preprocess is None and processor is not None:
        read = read_processor(processor, config.resampler or "torchvision", option="")
        facts.preprocess.append(Fact(read, str(processor)))


def _find_processor(folder: Path) -> Path | None:
    """The file of a processor in a folder, or above it, where transformers' `Trainer` may have left it."""
    above = [folder.parent] if CHECKPOINT.fullmatch(folder.name) else []
    files = (place / name for place in (folder, *above) for name in FILES)
    return next((file for file in files if file.is_file() and _is_of_images(file)), None)


def _is_of_images(path: Path) -> bool:
    """Whether a `processor_config.json`, which may be of texts alone, describes images."""
    return path.name == FILES[0] or "image_processor" in path.read_text(errors="replace")


def _read_problem(facts: Facts, found: dict[str, Any], where: str) -> None:
    problem = found.get("problem_type")
    if problem == "regression":
        raise ConfigError(f"{where} says problem_type {problem}: {NO_QUANTITY}")
    if problem == MULTI_LABEL:
        facts.multi_label = facts.multi_label or f"problem_type in {where}"


def _in_order(labels: dict[str, Any], numbers: Any, where: str) -> tuple[str, ...]:
    """The names in `id2label`, in the order of its numbers.

    Raises:
        ConfigError: they are not numbered from 0 without a gap, or `numbers`, its `label2id`, say otherwise.
    """
    expected = [str(i) for i in range(len(labels))]
    if sorted(labels) != sorted(expected):
        raise ConfigError(
            f"{where}: id2label is not numbered from 0 to {len(labels) - 1}: repair it, or give --classes"
        )
    if isinstance(numbers, dict) and any(str(numbers.get(name, key)) != key for key, name in labels.items()):
        raise ConfigError(f"{where}: id2label and label2id contradict each other: repair it, or give --classes")
    return tuple(str(labels[key]) for key in expected)


def _read_hub_config(facts: Facts, config: ConvertConfig, found: dict[str, Any], where: str) -> None:
    """Take what timm's `push_to_hf_hub` and `save_for_hf` write."""
    _check_architecture(config, found["architecture"], where)
    settings = {**(found.get("model_args") or {}), "global_pool": found.get("global_pool")}
    facts.model_args.append(Fact(timm_files.model_args(settings, where), where))
    cfg = found.get("pretrained_cfg")
    names = found.get("label_names") or (cfg or {}).get("label_names")
    if isinstance(names, list) and names:
        facts.names.append(Fact(tuple(map(str, names)), f"label_names in {where}"))
    if isinstance(cfg, dict) and config.preprocess is None:
        side = (found.get("model_args") or {}).get("img_size")
        sides = side if isinstance(side, list) else [side, side]
        read = timm_files.preprocess({} if side is None else {"input_size": (3, *sides)}, cfg, where)
        if found.get("model_type") == WRAPPER:
            read = read.model_copy(update={"decode": TRANSFORMERS})
        facts.preprocess.append(Fact(read, where))


def _check_architecture(config: ConvertConfig, architecture: str, where: str) -> None:
    # With a place before it, such as `hf-hub:timm/`, or in a script of the user's own, it may be anybody's name.
    name = architecture.rpartition("/")[2]
    if timm.is_model(name) and name.partition(".")[0] != config.backbone.partition(".")[0]:
        raise ConfigError(f"{where} is of {architecture}, --backbone says {config.backbone}: give one and the same")


def _read_training(facts: Facts, config: ConvertConfig, folder: Path) -> None:
    """Take the arguments of timm's training script, from its `args.yaml` or from the checkpoint itself."""
    for settings, where in _training_settings(config, folder):
        name = settings.get("model") or settings.get("arch")
        if not isinstance(name, str):
            continue
        _check_architecture(config, name, where)
        if len(settings) == 1:
            return
        arguments = {**(settings.get("model_kwargs") or {}), "global_pool": settings.get("gp")}
        facts.model_args.append(Fact(timm_files.model_args(arguments, where), where))
        facts.class_map = settings.get("class_map") or None
        if settings.get("bce_loss") and facts.multi_label is None:
            facts.notes.append(f"{where} says bce_loss: {SOFTMAX}")
        if config.preprocess is None:
            cfg = timm_files.pretrained_cfg(config.backbone)
            facts.preprocess.append(Fact(timm_files.preprocess(settings, cfg, where), where))
        return


def _training_settings(config: ConvertConfig, folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    path = folder / timm_files.ARGS_FILE
    if path.is_file():
        yield timm_files.read_yaml(path), str(path)
    content = read_entries(config.path)
    if hasattr(content.get("args"), "model") and "gp" in vars(content["args"]):
        yield vars(content["args"]), f"the args in {config.path}"
    if isinstance(content.get("arch"), str):
        yield {"arch": content["arch"]}, f"arch in {config.path}"
