"""Choose the method for a task: `mosa tune --method auto`.

    mosa tune --task folder --name flowers --data-dir flowers/ --method auto --trials 9

Reads from top to bottom: fit every probe, tune adapters (`training.search`), choose on validation (`training.choice`),
leave the run of the winner in the folder of the run. What follows knows nothing of `auto`: the record names the method
that was chosen. The test set takes no part.

Every trial is an ordinary run in the folder `trials`, which is removed at the end. After an interruption `--resume`
reads the trials that are finished, goes on with the one that is not, and ends with the same bytes.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from mosa_deploy.bundles.adapter_config import PROBES as PROBE_METHODS
from mosa_deploy.bundles.probe_features import LinearFeatures
from mosa_deploy.bundles.record import RECORD
from mosa_deploy.errors import BackboneError, ConfigError, MosaError
from mosa_deploy.utils.files import replacing, write_text
from training import presets, run
from training.attempts import SECONDS, TRIALS, Attempts, Tune
from training.choice import Candidate, Tried, choose, section, title, why
from training.config import TuneConfig
from training.fitting import check_fit, outline
from training.method_settings import UNCHANGED
from training.recipe import Recipe
from training.report import REPORT, VALIDATION, evaluate_command
from training.run_settings import describe
from training.search import ADAPTERS, Search
from training.tasks import run_name
from training.trials import centre
from training.tune_options import AugmentOptions
from training.workers import Workers

DEFAULT_TRIALS, DEFAULT_WORTH = 9, 1.0

PROBES: tuple[Candidate, ...] = (
    *(("linear", {"features": each}) for each in get_args(LinearFeatures)),
    ("attentive", {}),
)
"""The probes. Together they count as one trial, since they need no more than a few passes without gradients."""


def tune_auto(config: TuneConfig, tune: Tune) -> Path:
    """Try probes and adapters, and leave the best run in the folder of the run, which is returned.

    Raises:
        MosaError: an option, the data or the backbone cannot be used.
    """
    preset = presets.preset(presets.task_of(config), config.backbone)
    recipe = config.resolve(preset)
    outline(recipe.backbone, config.image_size)
    config = replace(config, augmentation=AugmentOptions(**UNCHANGED))
    probes = fitting(config, preset, PROBES)
    adapters = fitting(config, preset, ADAPTERS)
    trials = DEFAULT_TRIALS if config.trials is None else config.trials
    worth = DEFAULT_WORTH if config.worth is None else config.worth
    least = len(adapters) + 1
    if trials < least:
        listed = ", ".join(map(title, adapters))
        raise ConfigError(
            f"--trials {trials}: --method auto tries {least} methods (probes, {listed}), each at least once: give"
            f" {least} or more"
        )
    out = config.out or Path("runs") / (config.name or run_name(config.task))
    config = replace(config, jpeg=run.jpeg_of(config, out, run.SEARCH))
    settings = json.loads(describe(config, recipe, config.precision)) | {"trials": trials, "worth": worth}
    if run.open_run(out, json.dumps(settings, indent=2) + "\n", config.resume, run.SEARCH):
        shutil.rmtree(out / TRIALS, ignore_errors=True)
        print(f"{out} is finished: evaluate it, export it, or choose another --out")
        return out
    measure = "validation_balanced_accuracy" if recipe.select == "balanced" else "validation_accuracy"
    with Workers(config.streaming.processes) as workers:
        attempts = Attempts(config, out, tune, measure, workers)
        try:
            for method, options in probes:
                print(told(attempts.probe(method, options), f"trial 1/{trials}"), flush=True)
        except MosaError:
            attempts.forget()
            raise
        centres = [(each, centre(config.for_method(each[0], **each[1]), preset)) for each in adapters]
        search = Search(centres, recipe.epochs, measure, config.seed)
        for number in range(2, trials + 1):
            proposal = search.propose()
            tried = attempts.adapter(proposal)
            search.learn(proposal, tried.outcome)
            print(told(tried, f"trial {number}/{trials}"), flush=True)
    choice = choose(attempts.tried, worth)
    images = len((run.read_split(choice.winner.folder) or {})["validation"])
    keep(choice.winner.folder, out, section(attempts.tried, choice, measure, recipe.epochs, images))
    print(why(choice).replace("**", "").replace("`", ""))
    return out


def fitting(config: TuneConfig, preset: Recipe, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The methods that fit the backbone; a line is printed about each other one.

    Raises:
        ConfigError: an option is out of range.
    """
    found = []
    for method, options in candidates:
        try:
            own = config.for_probes() if method in PROBE_METHODS else config
            check_fit(own.for_method(method, **options, trials=None, worth=None), preset)
            found.append((method, options))
        except BackboneError as error:
            print(f"{title((method, options))} is left out: {error}")
    return found


def told(tried: Tried, which: str) -> str:
    """A line about a trial."""
    how = {"finished": "", "stopped": f", stopped after {tried.epochs} epochs", "failed": f", failed: {tried.fault}"}
    return f"{which}, {tried.name}: validation {tried.accuracy:.4f}{how[tried.outcome]}, {tried.seconds:.0f} s"


def keep(winner: Path, out: Path, chosen: str) -> None:
    """Copy the winner's files into the folder of the whole, with what was tried in its report; then remove the trials.

    The record comes last: until then the run is not finished.
    """
    for path in sorted(winner.iterdir(), key=lambda path: path.name == RECORD):
        if path.name == REPORT:
            text = path.read_text(encoding="utf-8").replace(evaluate_command(winner), evaluate_command(out))
            write_text(out / REPORT, text.replace(VALIDATION, f"{chosen}\n{VALIDATION}", 1))
        elif path.name != SECONDS:
            with replacing(out / path.name) as aside:
                shutil.copyfile(path, aside)
    shutil.rmtree(out / TRIALS)
