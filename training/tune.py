"""Tune one task: `mosa tune --task NAME`.

Reads from top to bottom: plan the run, read the images, train or fit, write the results.
"""

from dataclasses import replace
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
from training.dataset import Data, Read, read_dataset
from training.devices import Computing, choose_device
from training.events import write_events
from training.loop import Row, Trainer, Watch
from training.merge_scale import fit_merge_scale
from training.method_settings import AUTO
from training.plan import Plan
from training.probe import fit_probe
from training.ranks import Ranks, first_speaks, joined
from training.recipe import adapter_config
from training.reference import start_head
from training.results import write_results
from training.run_settings import describe
from training.scores import early_ending, figure_of, in_words
from training.workers import Workers


def tune(config: TuneConfig, read: Read = read_dataset, watch: Watch | None = None) -> Path:
    """Tune a task and return the folder of the run.

    `read` reads the images, and `watch` is shown the history after each epoch: a search shares the one between its
    runs, and stops a run by the other.

    Raises:
        MosaError: an option, the data or the backbone cannot be used, or training cannot continue.
    """
    with first_speaks():
        method, device = config.checked_method(), choose_device(config.device)
    with joined(device) as ranks:
        if ranks.count > 1 and method in (AUTO, *PROBES):
            raise ConfigError(f"--method {method} runs in one process: start it without torchrun or accelerate launch")
        if method == "auto":
            # Optuna is loaded for this method alone.
            from training.auto import tune_auto

            return tune_auto(config, tune)
        with Workers(max(1, config.streaming.processes // ranks.count)) as workers:
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
    if len(data.train) < plan.recipe.batch_size and method != "linear":
        print(
            f"{len(data.train)} training images are fewer than --batch-size {plan.recipe.batch_size}: one step per"
            " epoch"
        )

    torch.manual_seed(derive(config.seed, "head"))
    tuned = with_features(plan.model, plan.features, len(plan.splits.classes))
    if method in PROBES:
        adapter, rows = None, fit_features(plan, tuned, data)
    else:
        # A CPU computes the steps itself, and changes an image in a hundredth of the time that a step takes for it.
        with Workers(workers.count if plan.device == "cuda" else 0) as others:
            computing = Computing(plan.device, plan.precision, config.execution, ranks, others)
            adapter, rows = train(plan, data, computing, watch)
    if ranks.first:
        record = plan.record(adapter)
        write_results(out, record, plan.recipe, tuned, data.settled(), rows, plan.device, tested=bool(plan.splits.test))
    return out


def fit_features(plan: Plan, tuned: TunedModel, data: Data) -> list[Row]:
    """Fit a probe on the features of the frozen backbone; returns the rows of the history."""
    recipe, whole = plan.recipe, data.settled()
    sets = (whole.train, whole.validation, plan.preprocess)
    if isinstance(tuned, Probe) and plan.method == "attentive":
        return fit_attentive(tuned, *sets, recipe, plan.config.seed, plan.device)
    rows = fit_probe(tuned, *sets, plan.device, recipe.balance, recipe.select)
    freeze(tuned)
    return rows


def train(plan: Plan, data: Data, computing: Computing, watch: Watch | None) -> tuple[AdapterConfig | None, list[Row]]:
    """Tune adapters, or the backbone itself; returns the adapters' settings and the rows of the history."""
    model, recipe, method, seed = plan.model, plan.recipe, plan.method, plan.config.seed
    if plan.conventions.head_bias is not None:
        start_head(model, plan.conventions.head_bias)
    adapter = None
    if method not in BACKBONE_METHODS:
        adapter = adapter_config(recipe)
        attach(model, adapter, seed, split=method in SPLIT_METHODS)
    trainer = Trainer(model, data.train, data.validation, plan.preprocess, recipe, seed, computing, method)
    rows = fit(trainer, plan.out, plan.config.resume, watch)
    if adapter is not None and recipe.merge_scale == "learned" and computing.ranks.first:
        learned = fit_merge_scale(model, data.validation.settled(), plan.preprocess, plan.device)
        adapter = replace(adapter, merge_scale=learned)
    return adapter, rows


def fit(trainer: Trainer, out: Path, resume: bool, watch: Watch | None) -> list[Row]:
    """Run the remaining epochs, with a checkpoint after each; returns the rows of the history."""
    checkpoint = out / CHECKPOINT
    if resume and checkpoint.is_file():
        trainer.load(checkpoint)
        print(f"resumed after epoch {trainer.state.epoch}")

    def finished(trainer: Trainer) -> None:
        if not trainer.computing.ranks.first:
            return
        trainer.save(checkpoint)
        run.write_history(out, trainer.state.history)
        write_events(out, trainer.state.history)
        row = trainer.state.history[-1]
        print(
            f"epoch {row['epoch']:.0f}/{trainer.recipe.epochs}: cross entropy {row['cross_entropy']:.3f},"
            f" consistency {row['consistency']:.3f}, {in_words(figure_of(row))} {row[figure_of(row)]:.4f},"
            f" {row['images_per_second']:.0f} images/s"
            + (f", {trainer.time_left()} left" if row["epoch"] < trainer.recipe.epochs else ""),
            flush=True,
        )
        if watch is not None:
            watch(trainer.state.history)

    trainer.fit(finished)
    if ending := early_ending(trainer.state.history, trainer.recipe):
        print(ending)
    return trainer.state.history


@command
def main() -> None:
    """The command line."""
    with first_speaks():
        config = tune_config()
    tune(config)


if __name__ == "__main__":
    main()
