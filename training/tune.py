"""Tune one task: `mosa tune --task NAME`.

Reads from top to bottom: plan the run, read the images, train or fit, write the results.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mosa_deploy.adapters.attach import attach, freeze
from mosa_deploy.adapters.probe import Probe, TunedModel, with_features
from mosa_deploy.bundles.adapter_config import BACKBONE_METHODS, PROBES, SPLIT_METHODS, AdapterConfig, Method
from mosa_deploy.bundles.record import CHECKPOINT
from mosa_deploy.errors import ConfigError, command
from mosa_deploy.utils.seeds import derive
from training import run
from training.arguments import tune_config
from training.attentive import fit_attentive
from training.config import TuneConfig
from training.dataset import Data, Dataset, Read, read_dataset
from training.devices import Computing, choose_device
from training.epochs import fit
from training.extend import Forgetting
from training.joint.joint import tune_joint
from training.loop import Row, Trainer, Watch
from training.merge_scale import fit_merge_scale
from training.method_settings import AUTO
from training.new_rows import begin
from training.plan import Plan
from training.probe import fit_probe
from training.ranks import Ranks, first_speaks, joined
from training.recipe import adapter_config
from training.reference import start_head
from training.results import write_results
from training.run_settings import describe
from training.start import completed
from training.workers import Workers


@dataclass(frozen=True)
class Tuned:
    """What came of tuning, beside the model."""

    adapter: AdapterConfig | None
    """The adapters' settings."""
    rows: list[Row]
    """The history."""
    forgetting: Forgetting | None = None
    """If the task got more classes."""


def tune(config: TuneConfig, read: Read = read_dataset, watch: Watch | None = None) -> Path:
    """Tune a task and return the folder of the run.

    `read` reads the images, and `watch` is shown the history after each epoch: a search shares the one between its
    runs, and stops a run by the other.

    Raises:
        MosaError: an option, the data or the backbone cannot be used, or training cannot continue.
    """
    with first_speaks():
        config = completed(config)
        method, device = config.checked_method(), choose_device(config.device)
    with joined(device) as ranks:
        if ranks.count > 1 and method in (AUTO, *PROBES):
            raise ConfigError(f"--method {method} runs in one process: start it without torchrun or accelerate launch")
        processes = max(1, config.streaming.processes // ranks.count)
        if config.joining.joint is not None:
            with Workers(processes) as workers:
                return tune_joint(config, read, watch, workers, ranks)
        if method == "auto":
            # Optuna is loaded for this method alone.
            from training.auto import tune_auto

            return tune_auto(config, tune)
        with Workers(processes) as workers:
            return tune_one(config, method, read, watch, workers, ranks)


def tune_one(
    config: TuneConfig, method: Method, read: Read, watch: Watch | None, workers: Workers, ranks: Ranks
) -> Path:
    """The same for a method that is named; `workers` decode the images if there are many, and `ranks` share batches.

    Raises:
        MosaError: as `tune`.
    """
    plan = Plan.of(config, method, ranks)
    config, out = plan.config, plan.out
    if ranks.any(ranks.first and run.open_run(out, describe(config, plan.recipe, plan.precision), config.resume)):
        (out / CHECKPOINT).unlink(missing_ok=True)
        print(f"{out} is finished: evaluate it, export it, or choose another --out")
        return out
    print(plan, *plan.splits.remarks, sep="\n")
    if ranks.first:
        run.keep_split(out, plan.splits, config.resume)
    data = read(plan.splits, plan.preprocess, config, ranks.folder(out), workers)
    if plan.extension is not None:
        data = plan.extension.joined(data.settled())
        plan.extension.note_seen(ranks.folder(out))
    if len(data.train) < plan.recipe.batch_size and method != "linear":
        print(
            f"{len(data.train)} training images are fewer than --batch-size {plan.recipe.batch_size}: one step per"
            " epoch"
        )

    torch.manual_seed(derive(config.seed, "head"))
    tuned = with_features(plan.model, plan.features, len(plan.classes))
    if method in PROBES:
        found = Tuned(None, fit_features(plan, tuned, data))
    else:
        # A CPU computes the steps itself, and changes an image in a hundredth of the time that a step takes for it.
        with Workers(workers.count if plan.device == "cuda" else 0) as others:
            computing = Computing(plan.device, plan.precision, config.execution, ranks, others)
            found = train(plan, data, computing, watch)
    if ranks.first:
        write_all(plan, tuned, data.settled(), found)
    return out


def write_all(plan: Plan, model: TunedModel, data: Dataset, found: Tuned) -> None:
    """Write the files of the run, and say what was forgotten."""
    tested, more = bool(plan.splits.test), None
    if found.forgetting is not None:
        data, more = replace(data, remarks=[*data.remarks, str(found.forgetting)]), found.forgetting.metrics
    exemplars, record = plan.config.starting.exemplars, plan.record(found.adapter)
    write_results(plan.out, record, plan.recipe, model, data, found.rows, plan.device, tested, exemplars, more)
    if found.forgetting is not None:
        print(found.forgetting)


def fit_features(plan: Plan, tuned: TunedModel, data: Data) -> list[Row]:
    """Fit a probe on the features of the frozen backbone; returns the rows of the history."""
    recipe, whole = plan.recipe, data.settled()
    sets = (whole.train, whole.validation, plan.preprocess)
    if isinstance(tuned, Probe) and plan.method == "attentive":
        return fit_attentive(tuned, *sets, recipe, plan.config.seed, plan.device)
    rows = fit_probe(tuned, *sets, plan.device, recipe.balance, recipe.select)
    freeze(tuned)
    return rows


def train(plan: Plan, data: Data, computing: Computing, watch: Watch | None) -> Tuned:
    """Tune adapters, or the backbone itself."""
    model, recipe, method, seed = plan.model, plan.recipe, plan.method, plan.config.seed
    if plan.conventions.head_bias is not None:
        start_head(model, plan.conventions.head_bias)
    adapter = None
    if method not in BACKBONE_METHODS:
        adapter = adapter_config(recipe)
        attach(model, adapter, seed, split=method in SPLIT_METHODS)
    if plan.beginning is not None:
        plan.beginning.load(model)
    old = plan.extension
    before = 0.0 if old is None else old.accuracy(model.to(plan.device), plan.device, len(old.record.classes))
    trainer = Trainer(model, data.train, data.validation, plan.preprocess, recipe, seed, computing, method)
    if old is not None:
        begin(trainer, len(old.record.classes), plan.config.starting.distil)
    rows = fit(trainer, plan.out, plan.config.resume, watch)
    if adapter is not None and recipe.merge_scale == "learned" and computing.ranks.first:
        learned = fit_merge_scale(model, data.validation.settled(), plan.preprocess, plan.device)
        adapter = replace(adapter, merge_scale=learned)
    if old is None:
        return Tuned(adapter, rows)
    return Tuned(adapter, rows, Forgetting(before, old.accuracy(model, plan.device), len(old.samples.labels)))


@command
def main() -> None:
    """The command line."""
    with first_speaks():
        config = tune_config()
    tune(config)


if __name__ == "__main__":
    main()
