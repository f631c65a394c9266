"""The model card: `README.md`, whose metadata the hub reads, made from a bundle's record."""

from huggingface_hub import EvalResult, ModelCardData

from mosa_deploy.backbones.names import FROM_INDEX, is_embedded
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.record import Backbone, Record
from mosa_deploy.errors import listed
from mosa_deploy.utils.markdown import table

LIBRARY = "mosa-deploy"

TASK = "image-classification"

METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
    "macro_f1": ("f1", "macro-F1"),
    "micro_f1": ("f1", "micro-F1"),
    "map": ("mAP", "mean average precision"),
    "ece": ("ece", "expected calibration error"),
}
"""What a record calls a metric of validation -> the hub's identifier, and the name in words."""

ON_VALIDATION = "validation_"


def card(bundle: Bundle, repo: str, licence: str | None = None, validation_images: int = 0) -> str:
    """The text of the card, with its metadata on top; `repo` is what `mosa pull` is given."""
    return f"---\n{metadata(bundle.record, licence).to_yaml()}\n---\n\n{text(bundle, repo, validation_images)}"


def metadata(record: Record, licence: str | None = None) -> ModelCardData:
    """What the hub reads: licence, library, base model, tags, and the metrics as its model-index."""
    base = base_model(record.backbone)
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=record.dataset,
            dataset_name=record.dataset,
            dataset_split="validation",
            metric_type=METRICS[name][0],
            metric_name=METRICS[name][1],
            metric_value=value,
        )
        for name, value in validation_metrics(record).items()
    ]
    return ModelCardData(
        license=licence,
        library_name=LIBRARY,
        pipeline_tag=TASK,
        base_model=base,
        base_model_relation=None if base is None else "finetune" if record.tunes_backbone else "adapter",
        tags=[LIBRARY, record.method, *(["multi-label"] if record.multi_label else [])],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=record.task if results else None,
        eval_results=results or None,
    )


def base_model(backbone: Backbone) -> str | None:
    """The backbone's repository; None if its weights are not timm's, or the record does not say which of them."""
    ours = is_embedded(backbone.name) or backbone.name in FROM_INDEX
    return None if backbone.source != "pretrained" or ours or "." not in backbone.name else f"timm/{backbone.name}"


def validation_metrics(record: Record) -> dict[str, float]:
    """The metrics of validation that are in `METRICS`, in its order."""
    found = {name: record.metrics.get(ON_VALIDATION + name) for name in METRICS}
    return {name: value for name, value in found.items() if value is not None}


def text(bundle: Bundle, repo: str, validation_images: int) -> str:
    """What a reader is told: what the task answers, what it was tuned on, and how it is used."""
    record = bundle.record
    height, width = record.preprocess.size
    answers = "every label that applies" if record.multi_label else "one class per image"
    about = f" ({record.backbone.about})" if record.backbone.about else ""
    facts = [
        ("answers", f"{answers}, of {len(record.classes)}: {listed(record.classes)}"),
        ("method", record.method),
        ("backbone", f"{record.backbone.name}{about}, weights {record.backbone.source}"),
        ("sha256 of the backbone", f"`{record.backbone.sha256}`"),
        ("images", f"{height} x {width} pixels"),
        ("tuned on", record.dataset),
        *((f"{METRICS[name][1]} on validation", f"{value:.4f}") for name, value in validation_metrics(record).items()),
        ("digest", f"`{bundle.digest}`"),
        ("record", f"format version {record.format_version}"),
    ]
    return f"""# {record.task}

A bundle of mosa-deploy for image classification: {what_it_holds(record)}.

{table(("what", "value"), facts)}

```sh
mosa pull {repo} --out runs/{record.task}
mosa export --bundle runs/{record.task} --out artifacts
mosa serve --artifacts artifacts
```

The files hold images of the task: {len(bundle.canary.images)} in the canary, by which every copy proves itself, and
{validation_images} more for validation.
"""


def what_it_holds(record: Record) -> str:
    """Which weights are in the files."""
    if record.tunes_backbone:
        return "a head, and what tuning changed in the backbone"
    return (
        f"{'a head' if record.adapter is None else 'an adapter and a head'} for a frozen backbone, without its weights"
    )
