"""What the options of `mosa tune` may not be, one text for each fault."""

from typing import TYPE_CHECKING

from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, PROBES
from mosa_deploy.bundles.decode import WHITE_16
from training.method_settings import LACKING, METHODS_OF, STYLE_METHODS, UNCHANGED, WITHOUT_AUGMENTATION
from training.recipe import flag
from training.recipes import Conventions

if TYPE_CHECKING:
    from training.config import TuneConfig


def refused_options(config: "TuneConfig") -> list[str]:
    """The options that are given and that the method does not take."""
    given = config.stated()
    refused = [name for name, methods in METHODS_OF.items() if name in given and config.method not in methods]
    refused += [name for name in LACKING.get(config.method, ()) if name in given]
    return refused + (["style"] if has_another_method(config) and "style" not in refused else [])


def has_another_method(config: "TuneConfig") -> bool:
    """Whether the style is that of other methods."""
    return config.method not in STYLE_METHODS.get(config.style or "", (config.method,))


def misplaced(config: "TuneConfig", conventions: Conventions) -> list[str]:
    """One text for each option that does not fit the method or the recipe."""
    method, given, refused = config.method, config.given(), refused_options(config)
    faults = [
        f"{flag(name)} is an option of --method {' and '.join(METHODS_OF[name])}: drop it"
        for name in refused
        if method not in METHODS_OF.get(name, (method,))
    ]
    if method in PROBES:
        loop = [name for name in config.loop_options() if name not in refused]
        faults += [f"{flag(name)} is for methods that tune the backbone: drop it" for name in loop]
    whose = "adapters" if method in BACKBONE_METHODS else "adapters with a bottleneck"
    faults += [
        f"{flag(name)} is an option of {whose}: --method {method} has none, drop it"
        for name in LACKING.get(method, ())
        if name in given
    ]
    if method in BACKBONE_METHODS and config.recipe == "reference":
        faults.append(f"--recipe reference is for adapters: --method {method} takes ours or paper")
    if config.optimisation.opt is not None and conventions.steps_per_expert:
        faults.append(f"--opt {config.optimisation.opt}: --recipe {config.recipe} has an optimiser of its own")
    if config.features != "cls" and method != "linear":
        faults.append(f"--features {config.features} is an option of --method linear: drop it")
    changing = [f"{flag(name)} {given[name]}" for name in UNCHANGED if given.get(name, 0) not in (0, "none")]
    if changing and method in WITHOUT_AUGMENTATION:
        faults.append(f"{', '.join(changing)}: --method {method} sees images as they are, so drop it")
    if config.balance == "sampler" and method == "linear":
        faults.append("--balance sampler is for methods with epochs: --method linear takes --balance loss")
    return faults


def out_of_range(config: "TuneConfig") -> list[str]:
    """One text for each option beside those of the recipe that has no meaning."""
    faults = []
    if config.trials is not None and config.trials < 1:
        faults.append(f"--trials {config.trials}: at least 1")
    if config.worth is not None and not 0 <= config.worth <= 100:
        faults.append(f"--worth {config.worth:g}: 0 to 100 points")
    if config.image_size is not None and config.image_size < 1:
        faults.append(f"--image-size {config.image_size}: at least 1, in whole patches")
    if config.white_level is not None and not 1 <= config.white_level <= WHITE_16:
        faults.append(f"--white-level {config.white_level}: 1 to {WHITE_16}")
    if has_another_method(config) and config.method in METHODS_OF["style"]:
        faults.append(f"--style {config.style}: choose --method {' or '.join(STYLE_METHODS[config.style or ''])}")
    return faults
