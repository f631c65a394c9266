"""Tune several tasks at once, with one adapter and a head for each: `mosa tune --joint tasks.toml`.

Reads from top to bottom: plan every task, read the images, train, write a run for each task. Their bundles have the
same adapter, byte for byte, so that a service keeps it once and one pass of an image answers all of them.
"""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from mosa_deploy.adapters.attach import attach
from mosa_deploy.adapters.probe import with_features
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.bundles.adapter_config import SPLIT_METHODS
from mosa_deploy.bundles.record import CHECKPOINT
from mosa_deploy.errors import ConfigError, MosaError
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.seeds import derive
from training import run
from training.config import TuneConfig
from training.dataset import Dataset, Read
from training.devices import Computing
from training.epochs import fit
from training.joined import JoinedSet
from training.joint.tasks import joint_folder, joint_tasks
from training.joint.trainer import JointTrainer, shares
from training.loop import Row, Watch
from training.plan import Plan
from training.ranks import Ranks
from training.recipe import Recipe, adapter_config
from training.reference import start_head
from training.report import REPORT
from training.results import write_results
from training.run_settings import describe
from training.scores import kept
from training.workers import Workers


def tune_joint(config: TuneConfig, read: Read, watch: Watch | None, workers: Workers, ranks: Ranks) -> Path:
    """Tune the tasks of a file at once, and return the folder with a run for each.

    Raises:
        MosaError: an option, the data or the backbone cannot be used, or training cannot continue.
    """
    if ranks.count > 1:
        raise ConfigError("--joint runs in one process: start it without torchrun or accelerate launch")
    configs, recipe = joint_tasks(config)
    plans, out = plans_of(configs, recipe, ranks), joint_folder(config)
    if not config.resume and any((out / name).is_file() for name in (run.CONFIG, run.HISTORY)):
        raise ConfigError(f"--out {out} holds a run: continue with --resume, or choose another --out")
    finished = [run.open_run(plan.out, described(plan, config), config.resume) for plan in plans]
    if all(finished):
        (out / CHECKPOINT).unlink(missing_ok=True)
        print(f"{out} is finished: evaluate its tasks, export them, or choose another --out")
        return out
    data = list[Dataset]()
    for plan in plans:
        print(plan, *plan.splits.remarks, sep="\n")
        run.keep_split(plan.out, plan.splits, config.resume)
        data.append(read(plan.splits, plan.preprocess, plan.config, plan.out, workers).settled())
    with Workers(workers.count if plans[0].device == "cuda" else 0) as others:
        computing = Computing(plans[0].device, plans[0].precision, config.execution, ranks, others)
        trainer = train(plans, data, computing, config)
        rows = fit(trainer, out, config.resume, watch)
    finish(plans, data, trainer, rows, out)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return out


def plans_of(configs: list[TuneConfig], recipe: Recipe, ranks: Ranks) -> list[Plan]:
    """What the run is going to do for each task, on one backbone.

    Raises:
        ConfigError: the data of some tasks, or the backbone, cannot be used; lists every fault at once.
    """
    plans, faults = list[Plan](), list[str]()
    for config in configs:
        try:
            plan = Plan.of(config, config.checked_method(), ranks)  # type: ignore[arg-type] # auto was refused before
            plans.append(replace(plan, recipe=recipe, model=plans[0].model if plans else plan.model))
        except MosaError as error:
            faults.append(f"[tasks.{config.name}] {error}")
    if faults:
        raise ConfigError("; ".join(faults))
    return plans


def described(plan: Plan, config: TuneConfig) -> str:
    """The text of a task's `config.json`."""
    return describe(replace(plan.config, joining=config.joining), plan.recipe, plan.precision)


def train(plans: list[Plan], data: list[Dataset], computing: Computing, config: TuneConfig) -> JointTrainer:
    """The trainer of all tasks: a model with one adapter and the heads of all, and one set of images."""
    first, counts = plans[0], {plan.name: len(plan.classes) for plan in plans}
    recipe, method, seed, total = first.recipe, first.method, config.seed, sum(counts.values())
    torch.manual_seed(derive(seed, "head"))
    with_features(first.model, "cls", total)
    if first.conventions.head_bias is not None:
        start_head(first.model, first.conventions.head_bias)
    attach(first.model, adapter_config(recipe), seed, split=method in SPLIT_METHODS)
    starts = [sum([*counts.values()][:i]) for i in range(len(plans))]
    sets = [JoinedSet.of([getattr(each, name) for each in data], starts) for name in ("train", "validation")]
    temperature = config.joining.sampling_temperature
    return JointTrainer(
        *(first.model, *sets, first.preprocess, recipe, seed, computing, method),
        classes=counts,
        temperature=temperature,
    )


def finish(plans: list[Plan], data: list[Dataset], trainer: JointTrainer, rows: list[Row], out: Path) -> None:
    """Write the run of each task, and a report of all."""
    model, temperature = trainer.model, trainer.temperature
    names = ", ".join(plan.name for plan in plans)
    remark = (
        f"tuned at once with {names}, sampling temperature {temperature:g}: they have one adapter, its epoch is the one"
        " with the best mean of their validation accuracies, and the curves show means too"
    )
    weight, bias = (value.detach().clone() for value in model.get_classifier().parameters())
    for plan, read, (start, end) in zip(plans, data, pairwise(trainer.ends.tolist()), strict=True):
        give_head(model, weight[start:end], bias[start:end])
        noted = replace(read, remarks=[remark, *read.remarks])
        tested, exemplars = bool(plan.splits.test), plan.config.starting.exemplars
        record = plan.record(adapter_config(plan.recipe))
        write_results(plan.out, record, plan.recipe, model.to(plan.device), noted, rows, plan.device, tested, exemplars)
    row, sizes = rows[kept(rows, plans[0].recipe.select)], [len(each.train) for each in data]
    lines = [
        (f"[{plan.name}]({plan.out.name}/{REPORT})", str(len(plan.classes)), str(size), str(seen), f"{accuracy:.4f}")
        for plan, size, seen, accuracy in zip(
            plans,
            sizes,
            shares(sizes, temperature),
            (row[f"{plan.name}_accuracy"] for plan in plans),
            strict=True,
        )
    ]
    heads = ("task", "classes", "training images", "seen per epoch", "validation accuracy")
    text = f"# {out.name}\n\n{plans[0].method}, {remark}.\n\n{table(heads, lines, align='lrrrr')}\n"
    write_text(out / REPORT, text)


@torch.no_grad()
def give_head(model: Transformer, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Put a head of these rows into a model."""
    model.reset_classifier(len(weight))
    head = model.get_classifier()
    assert isinstance(head, nn.Linear)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
